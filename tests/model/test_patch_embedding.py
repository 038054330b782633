import pytest
import torch

from model.patch_embedding import PatchEmbed, embed_by_convolution, embed_by_unfolding


@pytest.mark.parametrize(("height", "width", "patch_size"), [(8, 8, 4), (32, 16, 8), (28, 42, 14), (30, 30, 8)])
def test_unfolding_equals_convolution(height: int, width: int, patch_size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, height, width, dtype=torch.float64, generator=generator)
    weight = torch.randn(5, 3, patch_size, patch_size, dtype=torch.float64, generator=generator)
    bias = torch.randn(5, dtype=torch.float64, generator=generator)

    unfolded = embed_by_unfolding(images, weight, bias)

    assert unfolded.shape == (2, (height // patch_size) * (width // patch_size), 5)
    torch.testing.assert_close(unfolded, embed_by_convolution(images, weight, bias), rtol=0, atol=1e-12)


def test_patches_are_in_reading_order() -> None:
    images = torch.zeros(1, 1, 4, 6)
    images[0, 0, 0:2, 4:6] = 1.0  # the third patch of the first row
    tokens = embed_by_unfolding(images, torch.ones(1, 1, 2, 2))
    assert tokens.flatten().tolist() == [0, 0, 4, 0, 0, 0]


def test_folded_normalization_takes_raw_pixels() -> None:
    torch.manual_seed(0)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    patch_embed = PatchEmbed(num_channels=3, patch_size=14, embed_dim=64)
    pixels = torch.randint(0, 256, (2, 3, 28, 28), dtype=torch.uint8)
    normalised = (pixels / 255 - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    with torch.no_grad():
        expected = patch_embed(normalised)

        folded = patch_embed.fold_normalization(1 / 255, mean, std)

        torch.testing.assert_close(folded(pixels.float()), expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(patch_embed(normalised), expected, rtol=0, atol=0)
