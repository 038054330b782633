"""Interleaved rounds of measurements."""

from benchmarks.measure import Samples, interleaved


def test_rounds_alternate_direction() -> None:
    order: list[str] = []

    def case(name: str) -> tuple[str, object]:
        return name, lambda: order.append(name) or float(len(order))  # type: ignore[func-returns-value]

    samples = interleaved("test", [case("a"), case("b"), case("c")], rounds=3)  # type: ignore[list-item]
    assert order == ["a", "b", "c", "c", "b", "a", "a", "b", "c"]
    assert samples["b"].values == (2.0, 5.0, 8.0)


def test_ratios_are_within_rounds() -> None:
    ours, theirs = Samples((10.0, 20.0, 90.0)), Samples((5.0, 20.0, 30.0))
    assert ours.over(theirs) == 2.0


def test_ratio_to_a_round_without_answers() -> None:
    ours, theirs = Samples((10.0, 20.0, 90.0)), Samples((0.0, 20.0, 30.0))
    assert ours.over(theirs) == 3.0
    assert ours.over(Samples((0.0, 0.0, 9.0))) == float("inf")
