"""Classify the images of one request: each with an outcome of its own, or all or none."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from fastapi import Request

from app.api.dependencies import Admitted, while_connected
from app.api.payloads.body import Image
from app.decoding.limits import check_work
from app.errors import ServiceError
from app.pixels import Pixels
from app.serving.results import Classification, longest

Outcome = Classification | ServiceError
T = TypeVar("T")


async def classify_all(request: Request, admitted: Admitted, images: Sequence[Image]) -> list[Outcome]:
    """Return the classification or error of each image, in order. Any exception but a ServiceError fails the request.

    Raises:
        ImageTooLarge: the images together have more pixels than a request may.
        ClientDisconnect: the client has gone.
    """
    state, classifier, identity = admitted.state, admitted.classifier, object()
    encoded = [image for image in images if isinstance(image, bytes)]
    await state.slices.work(check_work(encoded, state.settings.max_image_pixels, state.settings.max_request_pixels))

    async def classify(image: Image) -> Classification:
        if isinstance(image, ServiceError):
            raise image
        return await classifier.classify(image, admitted.deadline, identity)

    return await _outcomes(request, classify, images)


async def classify_each(request: Request, admitted: Admitted, images: Sequence[Image], named: str) -> list[Classification]:
    """Return the classification of each image, in order.

    Args:
        request: the request.
        admitted: the same, admitted.
        images: encoded images.
        named: what its protocol calls one of them, for the message of an error.

    Raises:
        ServiceError: that of the first image that failed, with its place if there are several.
    """
    return _all_or_none(await classify_all(request, admitted, images), named)


async def classify_tensor(request: Request, admitted: Admitted, pixels: Sequence[Pixels], named: str) -> list[Classification]:
    """Return the classification of each image that its client has decoded; as `classify_each`."""

    async def classify(image: Pixels) -> Classification:
        return await admitted.classifier.classify_pixels(image, admitted.deadline)

    return _all_or_none(await _outcomes(request, classify, pixels), named)


async def _outcomes(request: Request, classify: Callable[[T], Awaitable[Classification]], images: Sequence[T]) -> list[Outcome]:
    async def outcome(image: T) -> Outcome:
        try:
            return await classify(image)
        except ServiceError as error:
            return error

    async def all_outcomes() -> list[Outcome]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(outcome(image)) for image in images]
        return [task.result() for task in tasks]

    outcomes = await while_connected(request, all_outcomes())
    request.state.timings = longest([outcome.timings for outcome in outcomes if isinstance(outcome, Classification)])
    return outcomes


def _all_or_none(outcomes: Sequence[Outcome], named: str) -> list[Classification]:
    classifications = []
    for index, outcome in enumerate(outcomes):
        if isinstance(outcome, ServiceError):
            raise outcome.at(f"{named} {index}") if len(outcomes) > 1 else outcome
        classifications.append(outcome)
    return classifications
