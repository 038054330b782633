"""Preprocessors of one model."""

from app.decoding import photograph
from app.decoding.image import ImageDecoder
from app.decoding.photograph import photograph_decoder, size_decoder
from app.decoding.preprocessor import Preprocessor, Preprocessors


def preprocessors_of(decoder: ImageDecoder, shape: tuple[int, int, int]) -> Preprocessors:
    """Return the preprocessors of a model.

    Args:
        decoder: decodes to the input of the model.
        shape: (C, H, W) of that input.
    """
    return Preprocessors(
        Preprocessor(decoder.decode, shape),
        Preprocessor(photograph_decoder(decoder.decode_to_show), photograph.SHAPE),
        Preprocessor(size_decoder(decoder.upright_size), photograph.SIZE_SHAPE),
    )
