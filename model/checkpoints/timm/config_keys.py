"""Keys of timm's config.json, of the `pretrained_cfg` and `model_args` in it, and of what transformers adds to wrap it."""

from model.checkpoints.hugging_face import config_keys as hugging_face_keys
from model.checkpoints.known_keys import KnownKeys, keys

WRAPPED = "TimmWrapperForImageClassification"

CONFIG = KnownKeys(
    honoured=keys(
        "architecture num_classes global_pool pretrained_cfg model_args label_names label_descriptions labels id2label "
        "problem_type dataset"
    ),
    harmless=hugging_face_keys.HARMLESS | keys("num_features do_pooling"),
    supported={
        **hugging_face_keys.SUPPORTED,
        "model_type": ("timm_wrapper",),
        "architectures": ([WRAPPED],),
    },
    refused=hugging_face_keys.REFUSED,
)

PRETRAINED_CFG = KnownKeys(
    honoured=keys(
        "input_size fixed_input_size interpolation crop_pct crop_mode mean std num_classes label_names label_descriptions tag "
        "dataset"
    ),
    # where the weights came from; what timm.validate uses; what timm takes to adapt weights to other channels or classes
    harmless=keys(
        "url file state_dict hf_hub hf_hub_id hf_hub_filename source architecture custom_load license description origin_url "
        "paper_name paper_ids notes test_input_size test_crop_pct min_input_size pool_size test_pool_size first_conv classifier"
    ),
    supported={"label_offset": (0,)},
)

MODEL_ARGS = KnownKeys(
    honoured=keys(
        "img_size patch_size embed_dim depth num_heads mlp_ratio act_layer norm_layer global_pool class_token reg_tokens "
        "no_embed_class pre_norm fc_norm qkv_bias init_values num_classes dynamic_img_size"
    ),
    # of effect while a model is trained, or before
    harmless=keys(
        "drop_rate pos_drop_rate patch_drop_rate proj_drop_rate attn_drop_rate drop_path_rate weight_init fix_init out_indices"
    ),
    supported={
        "in_chans": (3,),
        "qk_norm": (False,),
        "scale_attn_norm": (False,),
        "scale_mlp_norm": (False,),
        "proj_bias": (True,),
        "pos_embed": ("learn",),
        "final_norm": (True,),
        "pool_include_prefix": (False,),
        "dynamic_img_pad": (False,),
        "use_naflex": (False,),
    },
)
