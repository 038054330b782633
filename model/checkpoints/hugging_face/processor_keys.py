"""Keys of Hugging Face's preprocessor_config.json."""

from dataclasses import replace

from model.checkpoints.known_keys import KnownKeys, keys

_HONOURED = keys(
    "image_processor_type feature_extractor_type do_resize size default_to_square resample do_center_crop crop_size do_rescale "
    "rescale_factor do_normalize image_mean image_std"
)

_HARMLESS = keys("processor_class _valid_processor_keys model_input_names _processor_class")
"""Names."""

_EXECUTION = keys("device disable_grouping return_tensors do_convert_rgb input_data_format image_seq_length use_fast backend")
"""Keys of how and where images are processed. They reach a processor in RGB, whatever it would convert, and with their channels
where Pillow has them."""

PROCESSOR = KnownKeys(
    _HONOURED,
    _HARMLESS | _EXECUTION,
    supported={"do_pad": (False,), "data_format": ("channels_first",), "offset": (False,), "do_reduce_labels": (False,)},
    refused={
        "auto_map": "it asks for code that comes with the model, and none is run; remove it if transformers has the processor",
        "pad_size": "images are not padded here; remove it if do_pad is false",
        "size_divisor": "images are resized to size alone here",
    },
)
"""Keys of the ViT, DeiT and Bit processors."""

CONVNEXT = replace(
    PROCESSOR,
    honoured=(_HONOURED | {"crop_pct"}) - {"do_center_crop"},
    supported={**PROCESSOR.supported, "do_center_crop": (False,)},
)
"""Keys of the ConvNext processor, which crops by crop_pct; a second crop is not supported."""

POOLFORMER = replace(PROCESSOR, honoured=_HONOURED | {"crop_pct"})
EFFICIENTNET = replace(PROCESSOR, honoured=_HONOURED | {"rescale_offset", "include_top"})
MOBILEVIT = replace(PROCESSOR, honoured=_HONOURED | {"do_flip_channel_order"})
