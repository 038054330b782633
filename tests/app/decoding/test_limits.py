"""Limits on the encoded images of a request."""

from collections import deque

import pytest

from app.decoding.limits import check_work
from app.errors import ImageTooLarge
from tests.support.models import encode, random_image


def test_request_over_its_pixels_is_refused() -> None:
    image = encode(random_image(0, 100, 100))
    deque(check_work([image] * 4, max_image_pixels=10_000, max_request_pixels=40_000))
    with pytest.raises(ImageTooLarge, match="50000 pixels together; at most 40000"):
        deque(check_work([image] * 5, max_image_pixels=10_000, max_request_pixels=40_000))


def test_image_too_large_alone_costs_no_work() -> None:
    deque(check_work([encode(random_image(0, 100, 100))] * 9, max_image_pixels=9_999, max_request_pixels=9_999))
