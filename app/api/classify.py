"""Classify or embed the images of one request: each with an outcome of its own, or all or none."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias, TypeVar

from fastapi import Request

from app.api.dependencies import Admitted, while_connected
from app.api.payloads.body import Image
from app.decoding.limits import check_work
from app.errors import ServiceError
from app.pixels import Pixels
from app.serving.results import Classification, Embedding, longest

T = TypeVar("T")
Result = TypeVar("Result", Classification, Embedding)
Outcome: TypeAlias = Result | ServiceError


async def classify_all(request: Request, admitted: Admitted, images: Sequence[Image]) -> list[Outcome[Classification]]:
    """Return the classification or error of each image, in order. Any exception but a ServiceError fails the request.

    Raises:
        ImageTooLarge: the images together have more pixels than a request may.
        ClientDisconnect: the client has gone.
    """
    identity = object()

    async def classify(image: bytes) -> Classification:
        return await admitted.classifier.classify(image, admitted.deadline, identity)

    return await _outcomes_of_images(request, admitted, classify, images)


async def embed_all(request: Request, admitted: Admitted, images: Sequence[Image], features: str) -> list[Outcome[Embedding]]:
    """Return the features or error of each image, in order; as `classify_all`."""
    identity = object()

    async def embed(image: bytes) -> Embedding:
        return await admitted.classifier.embed(image, features, admitted.deadline, identity)

    return await _outcomes_of_images(request, admitted, embed, images)


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
    return all_or_none(await classify_all(request, admitted, images), named)


async def classify_tensor(request: Request, admitted: Admitted, pixels: Sequence[Pixels], named: str) -> list[Classification]:
    """Return the classification of each image that its client has decoded; as `classify_each`."""

    async def classify(image: Pixels) -> Classification:
        return await admitted.classifier.classify_pixels(image, admitted.deadline)

    return all_or_none(await _outcomes(request, classify, pixels), named)


async def _outcomes_of_images(
    request: Request, admitted: Admitted, infer: Callable[[bytes], Awaitable[Result]], images: Sequence[Image]
) -> list[Outcome[Result]]:
    state = admitted.state
    encoded = [image for image in images if isinstance(image, bytes)]
    await state.slices.work(check_work(encoded, state.settings.max_image_pixels, state.settings.max_request_pixels))

    async def infer_or_raise(image: Image) -> Result:
        if isinstance(image, ServiceError):
            raise image
        return await infer(image)

    return await _outcomes(request, infer_or_raise, images)


async def _outcomes(request: Request, infer: Callable[[T], Awaitable[Result]], images: Sequence[T]) -> list[Outcome[Result]]:
    async def outcome(image: T) -> Outcome[Result]:
        try:
            return await infer(image)
        except ServiceError as error:
            return error

    async def all_outcomes() -> list[Outcome[Result]]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(outcome(image)) for image in images]
        return [task.result() for task in tasks]

    outcomes = await while_connected(request, all_outcomes())
    request.state.timings = longest([outcome.timings for outcome in outcomes if not isinstance(outcome, ServiceError)])
    return outcomes


def all_or_none(outcomes: Sequence[Outcome[Result]], named: str) -> list[Result]:
    """Return the results, or raise the first error with its place.

    Raises:
        ServiceError: that of the first image that failed.
    """
    found: list[Result] = []
    for index, outcome in enumerate(outcomes):
        if isinstance(outcome, ServiceError):
            raise outcome.at(f"{named} {index}") if len(outcomes) > 1 else outcome
        found.append(outcome)
    return found
