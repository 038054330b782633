"""Names of tensors in checkpoints of Hugging Face transformers, family by family."""

import re
from dataclasses import replace

from model.checkpoints.tensors.key_map import KeyMap

_POSITION_IDS = ("vision_model.embeddings.position_ids",)
"""Buffer that transformers 4 saved."""

_WITHOUT_PREFIX = ((r"^(embeddings|encoder|pre_layrnorm|post_layernorm|head)\.", r"vision_model.\1."),)
"""transformers 5 writes an image encoder alone without the prefix that it had in version 4."""

_GAMMA = ((r"(layernorm\w*)\.gamma$", r"\1.weight"), (r"(layernorm\w*)\.beta$", r"\1.bias"))


def vit_key_map(prefix: str) -> KeyMap:
    """Return the names of ViT, DeiT, ViTMSN and I-JEPA."""
    blocks = f"{prefix}encoder.layer.*"
    names = {
        "blocks.*.norm1": (f"{blocks}.layernorm_before",),
        "blocks.*.norm2": (f"{blocks}.layernorm_after",),
        "blocks.*.mlp.fc1": (f"{blocks}.intermediate.dense",),
        "blocks.*.mlp.fc2": (f"{blocks}.output.dense",),
    }
    in_memory = _in_memory(f"{prefix}encoder.layer", {"mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"})
    return KeyMap(
        _embeddings(prefix) | names,
        ignored=(f"{prefix}pooler.", f"{prefix}embeddings.mask_token"),
        renames=(*_GAMMA, (rf"^{re.escape(prefix)}layers\.", f"{prefix}encoder.layer."), *in_memory),
    )


def teacher_key_map() -> KeyMap:
    """Return the names of DeiT with a second head for the distillation token."""
    heads = {"head": ("cls_classifier",), "head_dist": ("distillation_classifier",)}
    return vit_key_map("deit.").extended(names=heads)


def msn_key_map() -> KeyMap:
    """Return the names of ViTMSN, whose blocks transformers 5 writes without their prefix."""
    return vit_key_map("vit.").extended(renames=((r"^encoder\.layer\.", "vit.encoder.layer."),))


def beit_key_map(prefix: str) -> KeyMap:
    """Return the names of BEiT, DiT and Data2Vec; their keys have no bias."""
    blocks = f"{prefix}encoder.layer.*"
    table = "relative_position_bias.relative_position_bias_table"
    names = {
        "blocks.*.ls1.gamma": (f"{blocks}.lambda_1",),
        "blocks.*.ls2.gamma": (f"{blocks}.lambda_2",),
        "blocks.*.attn.rel_pos.table": (f"{blocks}.attention.attention.{table}",),
        "fc_norm": (f"{prefix}pooler.layernorm",),
    }
    in_memory = (rf"^({re.escape(prefix)}encoder\.layer\.\d+)\.{re.escape(table)}$", rf"\1.attention.attention.{table}")
    return vit_key_map(prefix).extended(
        names=names,
        ignored_endings=(".relative_position_index",),  # buffers that transformers 4 saved
        renames=(in_memory,),
        zeros=(".attention.attention.key.bias",),
    )


def contrastive_key_map() -> KeyMap:
    """Return the names of the image encoders of CLIP and SigLIP.

    Their classifiers read the mean of the patches: SigLIP's attention pool and CLIP's last norm have no part in classes.
    """
    tower, blocks = "vision_model.", "vision_model.encoder.layers.*"
    names = {
        "cls_token": (f"{tower}embeddings.class_embedding",),
        "pos_embed": (f"{tower}embeddings.position_embedding.weight",),
        "patch_embed.proj": (f"{tower}embeddings.patch_embedding",),
        "norm_pre": (f"{tower}pre_layrnorm",),  # so it is spelled
        "blocks.*.norm1": (f"{blocks}.layer_norm1",),
        "blocks.*.attn.qkv": tuple(f"{blocks}.self_attn.{name}_proj" for name in "qkv"),
        "blocks.*.attn.proj": (f"{blocks}.self_attn.out_proj",),
        "blocks.*.norm2": (f"{blocks}.layer_norm2",),
        "blocks.*.mlp.fc1": (f"{blocks}.mlp.fc1",),
        "blocks.*.mlp.fc2": (f"{blocks}.mlp.fc2",),
        "norm": (f"{tower}post_layernorm",),
        "head": ("classifier",),
    }
    return KeyMap(names, ignored=(f"{tower}head.", f"{tower}post_layernorm.", *_POSITION_IDS))


def siglip_key_map() -> KeyMap:
    """Return the names of SigLIP's classifier with its attention pool, of which transformers fuses the projections."""
    pool = "vision_model.head"
    names = {
        "attn_pool.latent": (f"{pool}.probe",),
        "attn_pool.proj": (f"{pool}.attention.out_proj",),
        "attn_pool.norm": (f"{pool}.layernorm",),
        "attn_pool.mlp.fc1": (f"{pool}.mlp.fc1",),
        "attn_pool.mlp.fc2": (f"{pool}.mlp.fc2",),
    }
    slices = {}
    for part, where in (("q", (0, 1, 3)), ("kv", (1, 3, 3))):
        for kind in ("weight", "bias"):
            names[f"attn_pool.{part}.{kind}"] = (f"{pool}.attention.in_proj_{kind}",)
            slices[f"attn_pool.{part}.{kind}"] = where
    return replace(contrastive_key_map().extended(names=names), slices=slices)


def siglip_encoder_key_map() -> KeyMap:
    """Return the names of SigLIP's image encoder."""
    ignored = ("text_model.", "logit_scale", "logit_bias", *_POSITION_IDS)
    return replace(siglip_key_map(), ignored=ignored, renames=_WITHOUT_PREFIX)


def clip_encoder_key_map() -> KeyMap:
    """Return the names of CLIP's image encoder, with the projection that some classes have."""
    key_map = contrastive_key_map().extended(names={"head": ("visual_projection",)})
    ignored = ("text_model.", "text_projection.", "logit_scale", *_POSITION_IDS)
    return replace(key_map, ignored=ignored, renames=_WITHOUT_PREFIX)


def dinov3_key_map(*, gated: bool) -> KeyMap:
    """Return the names of DINOv3's encoder; its keys have no bias."""
    first = ("gate_proj", "up_proj") if gated else ("up_proj",)
    names = {
        "cls_token": ("embeddings.cls_token",),
        "reg_token": ("embeddings.register_tokens",),
        "patch_embed.proj": ("embeddings.patch_embeddings",),
        "blocks.*.norm1": ("layer.*.norm1",),
        "blocks.*.attn.qkv": tuple(f"layer.*.attention.{name}_proj" for name in "qkv"),
        "blocks.*.attn.proj": ("layer.*.attention.o_proj",),
        "blocks.*.ls1.gamma": ("layer.*.layer_scale1.lambda1",),
        "blocks.*.norm2": ("layer.*.norm2",),
        "blocks.*.mlp.fc1": tuple(f"layer.*.mlp.{name}" for name in first),
        "blocks.*.mlp.fc2": ("layer.*.mlp.down_proj",),
        "blocks.*.ls2.gamma": ("layer.*.layer_scale2.lambda1",),
    }
    in_memory = ((r"^model\.layer\.", "layer."),)
    return KeyMap(names, ("embeddings.mask_token",), renames=in_memory, zeros=(".attention.k_proj.bias",))


def dinov2_key_map(prefix: str, *, swiglu: bool = False) -> KeyMap:
    """Return the names of DINOv2; `prefix` is empty in an encoder without a head."""
    blocks = f"{prefix}encoder.layer.*"
    first, second = ("weights_in", "weights_out") if swiglu else ("fc1", "fc2")
    names = {
        "blocks.*.norm1": (f"{blocks}.norm1",),
        "blocks.*.ls1.gamma": (f"{blocks}.layer_scale1.lambda1",),
        "blocks.*.norm2": (f"{blocks}.norm2",),
        "blocks.*.mlp.fc1": (f"{blocks}.mlp.{first}",),
        "blocks.*.mlp.fc2": (f"{blocks}.mlp.{second}",),
        "blocks.*.ls2.gamma": (f"{blocks}.layer_scale2.lambda1",),
    }
    gated = {"mlp.down_proj": "mlp.weights_out"} if swiglu else {}
    return KeyMap(
        _embeddings(prefix) | names,
        ignored=(f"{prefix}embeddings.mask_token",),
        renames=_in_memory(f"{prefix}encoder.layer", gated),
        split={"blocks.*.mlp.fc1": (f"{blocks}.mlp.gate_proj", f"{blocks}.mlp.up_proj")} if swiglu else {},
    )


def _embeddings(prefix: str) -> dict[str, tuple[str, ...]]:
    blocks = f"{prefix}encoder.layer.*"
    return {
        "cls_token": (f"{prefix}embeddings.cls_token",),
        "dist_token": (f"{prefix}embeddings.distillation_token",),
        "reg_token": (f"{prefix}embeddings.register_tokens",),
        "pos_embed": (f"{prefix}embeddings.position_embeddings",),
        "patch_embed.proj": (f"{prefix}embeddings.patch_embeddings.projection",),
        "blocks.*.attn.qkv": tuple(f"{blocks}.attention.attention.{name}" for name in ("query", "key", "value")),
        "blocks.*.attn.proj": (f"{blocks}.attention.output.dense",),
        "norm": (f"{prefix}layernorm",),
        "head": ("classifier",),
    }


def _in_memory(blocks: str, names: dict[str, str]) -> tuple[tuple[str, str], ...]:
    """Map the names that transformers 5 has in memory, and so in `state_dict()`, to those that its `save_pretrained` writes."""
    attention = {f"{letter}_proj": f"attention.{name}" for letter, name in (("q", "query"), ("k", "key"), ("v", "value"))}
    attention["o_proj"] = "output.dense"
    names = names | {f"attention.{name}": f"attention.{written}" for name, written in attention.items()}
    beginning = rf"^({re.escape(blocks)}\.\d+)"
    return tuple((rf"{beginning}\.{re.escape(name)}\.(weight|bias)$", rf"\1.{written}.\2") for name, written in names.items())
