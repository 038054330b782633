"""Keys of Hugging Face's config.json: those of every model, and those of each family that is supported."""

from model.checkpoints.known_keys import KnownKeys, keys

_BOOKKEEPING = keys(
    "_name_or_path name_or_path _num_labels padding _commit_hash transformers_version finetuning_task tokenizer_class "
    "processor_class image_processor_type xla_device initializer_range"
)
"""Origin, companions and initialisation of the model."""

_EXECUTION = keys(
    "torch_dtype dtype use_bfloat16 torchscript tf_legacy_loss attn_implementation _attn_implementation "
    "_attn_implementation_autoset _attn_implementation_internal _experts_implementation_internal _flash_attn_2_enabled "
    "experts_implementation chunk_size_feed_forward gradient_checkpointing use_cache return_dict output_attentions "
    "output_hidden_states"
)
"""Keys without effect on the logits: ways to compute them, and outputs beside them. The dtype is chosen when serving."""

_TRAINING = keys("hidden_dropout_prob attention_probs_dropout_prob drop_path_rate layerscale_value use_mask_token")
"""Keys that take effect in training alone."""

_OTHER_HEADS = keys(
    "encoder_stride pooler_output_size pooler_act apply_layernorm reshape_hidden_states out_features out_indices "
    "_out_features _out_indices stage_names"
)
"""Read by the same encoder's other uses: masked images, pooled features, a backbone for detection."""

_GENERATION = keys(
    "max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k top_p "
    "typical_p repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids "
    "num_return_sequences output_scores return_dict_in_generate forced_bos_token_id forced_eos_token_id remove_invalid_values "
    "exponential_decay_length_penalty suppress_tokens begin_suppress_tokens prefix bos_token_id pad_token_id eos_token_id "
    "sep_token_id assistant_confidence_threshold assistant_lookbehind encoder_repetition_penalty epsilon_cutoff eta_cutoff "
    "num_assistant_tokens num_assistant_tokens_schedule target_lookbehind decoder_start_token_id task_specific_params "
    "tie_word_embeddings tie_encoder_decoder"
)
"""Keys of text generation; transformers 4 put them into every config.json."""

HARMLESS = _BOOKKEEPING | _EXECUTION | _TRAINING | _OTHER_HEADS | _GENERATION | {"label2id", "function_to_apply"}
"""The last is asked by transformers' pipeline only of a model without classes."""

SUPPORTED = {
    "is_decoder": (False,),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
}

REFUSED = {
    "auto_map": "it asks for code that comes with the model, and none is run; remove it if transformers has the model",
    "custom_pipelines": "it asks for code that comes with the model, and none is run; remove it if transformers' own will do",
    "quantization_config": "quantized weights are not supported; save the model unquantized, and choose the dtype when serving",
    "pruned_heads": "heads that were cut away are not supported; save the model with all its heads",
    "cross_attention_hidden_size": "only encoders are supported",
}

_HONOURED = keys(
    "architectures model_type id2label num_labels problem_type hidden_size num_hidden_layers "
    "num_attention_heads hidden_act layer_norm_eps image_size patch_size num_channels qkv_bias"
)

VIT = KnownKeys(_HONOURED | {"intermediate_size"}, HARMLESS, SUPPORTED, REFUSED)
DINOV2 = KnownKeys(_HONOURED | {"mlp_ratio", "use_swiglu_ffn"}, HARMLESS, SUPPORTED, REFUSED)
DINOV2_WITH_REGISTERS = KnownKeys(
    DINOV2.honoured | {"num_register_tokens"},
    HARMLESS,
    # in early conversions: what transformers does with them now whatever they say
    SUPPORTED | {"interpolate_antialias": (True,), "interpolate_offset": (0.0,)},
    REFUSED,
)

_BEIT_TRAINING = keys(
    "vocab_size add_fpn pool_scales use_auxiliary_head auxiliary_loss_weight auxiliary_channels auxiliary_num_convs "
    "auxiliary_concat_input semantic_loss_ignore_index"
)
"""Keys of pretraining and of segmentation."""

BEIT = KnownKeys(
    (VIT.honoured - {"qkv_bias"})
    | keys("use_mean_pooling use_absolute_position_embeddings use_relative_position_bias layer_scale_init_value"),
    HARMLESS | _BEIT_TRAINING,
    SUPPORTED | {"use_shared_relative_position_bias": (False,)},
    REFUSED,
)

_CONTRASTIVE = keys("projection_dim logit_scale_init_value initializer_factor attention_dropout dropout vision_use_head")
"""Keys of the comparison with texts, of training, and of SigLIP's attention pool, which its classifier does not read."""

CONTRASTIVE = KnownKeys(
    keys("architectures model_type id2label num_labels problem_type vision_config"),
    HARMLESS | _CONTRASTIVE | {"text_config"},
    SUPPORTED,
    REFUSED,
)
"""Keys of CLIP and SigLIP, whose image encoder is configured in `vision_config`."""

DINOV3 = KnownKeys(
    (VIT.honoured - {"qkv_bias"}) | keys("num_register_tokens rope_theta use_gated_mlp"),
    HARMLESS | keys("pos_embed_shift pos_embed_jitter pos_embed_rescale attention_dropout"),
    SUPPORTED | {"query_bias": (True,), "key_bias": (False,), "value_bias": (True,), "proj_bias": (True,), "mlp_bias": (True,)},
    REFUSED,
)

VISION_CONFIG = KnownKeys(VIT.honoured - {"qkv_bias"}, HARMLESS | _CONTRASTIVE, SUPPORTED, REFUSED)
