"""Lists of models: `VIT_MODELS`, the TOML file, and what is refused in them."""

from pathlib import Path
from typing import Any

import pytest

from app.errors import StartError
from app.serving.model_list import read_model_list
from app.settings import read_settings


def listed(tmp_path: Path, content: str, **settings: Any) -> Any:
    file = tmp_path / "models.toml"
    file.write_text(content)
    return read_model_list(read_settings(models_file=file, **settings)).models


def test_one_model_has_the_name_of_its_checkpoint() -> None:
    (spec,) = read_model_list(read_settings(model="/models/cats", model_aliases="kitty")).models
    assert (spec.name, spec.settings.model, spec.aliases) == (None, "/models/cats", ("kitty",))


def test_models_of_the_variable() -> None:
    settings = read_settings(models="cats=/models/cats, nsfw=org/model@rev", model_aliases="kitty", dtype="int8")
    cats, nsfw = read_model_list(settings).models
    assert [(each.name, each.settings.model, each.aliases) for each in (cats, nsfw)] == [
        ("cats", "/models/cats", ("kitty",)),
        ("nsfw", "org/model@rev", ()),
    ]
    assert cats.settings.dtype == nsfw.settings.dtype == "int8"


def test_models_of_the_file(tmp_path: Path) -> None:
    content = """
    default = "b"
    [models.a]
    model = "/models/a"
    dtype = "int8"
    max_batch_size = 3
    aliases = ["first"]
    [models.b]
    model = "org/b"
    lone_on_all_cores = true
    """
    b, a = listed(tmp_path, content, max_queue_delay_ms=2)
    assert (a.name, a.aliases, a.settings.model, a.settings.dtype, a.settings.max_batch_size) == (
        *("a", ("first",), "/models/a"),
        *("int8", 3),
    )
    assert (b.name, b.settings.model, b.settings.dtype, b.settings.lone_on_all_cores) == ("b", "org/b", "auto", True)
    assert a.settings.max_queue_delay_ms == b.settings.max_queue_delay_ms == 2


def test_only_the_default_has_a_second_copy(tmp_path: Path) -> None:
    content = "\n".join(f'[models.{name}]\nmodel = "/{name}"' for name in "abc")
    assert [each.settings.lone_on_all_cores for each in listed(tmp_path, content)] == ["auto", False, False]
    assert all(each.settings.lone_on_all_cores is True for each in listed(tmp_path, content, lone_on_all_cores=True))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("[models", "models.toml: "),
        ("", "it has no model: write a table"),
        ("models = 3", "it has no model: write a table"),
        ("[models.a]", r"\[models.a\] must have a `model`"),
        ("[models.a]\nmodel = 3", r"\[models.a\] must have a `model`"),
        ('[models.a]\nmodel = "x"\ndtpye = "int8"', r"\[models.a\] has 'dtpye', .*; did you mean dtype\?"),
        ('[models.a]\nmodel = "x"\ndtype = "int3"', r"\[models.a\]: VIT_DTYPE: input should be"),
        ('[models.a]\nmodel = "x"\nport = 3', r"\[models.a\] has 'port', which is not understood; it may have aliases"),
        ('[models."a/b"]\nmodel = "x"', "'a/b' cannot be a model's name"),
        ('[models.a]\nmodel = "x"\naliases = "b"', "aliases must be a list of names"),
        ('[models.a]\nmodel = "x"\naliases = ["b"]\n[models.b]\nmodel = "y"', "'b' names two models"),
        ('default = "c"\n[models.a]\nmodel = "x"', "default: there is no model 'c'"),
        ("".join(f'[models.m{number}]\nmodel = "x"\n' for number in range(1001)), "it has 1001 models; at most 1000"),
        ("#" * (1 << 20) + "\n", "cannot be read"),
        ('modles = 1\n[models.a]\nmodel = "x"', "the file has 'modles', .*; did you mean models"),
    ],
)
def test_bad_file_is_refused(tmp_path: Path, content: str, why: str) -> None:
    with pytest.raises(StartError, match=f"VIT_MODELS_FILE: .*{why}"):
        listed(tmp_path, content)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"VIT_MODELS_FILE: .*absent.toml cannot be read"):
        read_model_list(read_settings(models_file=tmp_path / "absent.toml"))


@pytest.mark.parametrize(
    ("models", "why"),
    [
        ("/models/cats", "has no name: write name=model"),
        ("cats=", "'cats' has no model"),
        ("a=/x,a=/y", "'a' names two models"),
        ("a/b=/x", "'a/b' cannot be a model's name"),
        ("x-pixels=/x", "'x-pixels' cannot be a model's name"),
        ("a=/x,,b=/y", "an item of the list is empty"),
    ],
)
def test_bad_variable_is_refused(models: str, why: str) -> None:
    with pytest.raises(StartError, match=f"VIT_MODELS: .*{why}"):
        read_settings(models=models)


def test_alias_that_is_a_name_is_refused() -> None:
    with pytest.raises(StartError, match="VIT_MODELS: 'b' names two models"):
        read_model_list(read_settings(models="a=/x,b=/y", model_aliases="b"))


@pytest.mark.parametrize("both", [("model", "models"), ("models", "models_file"), ("model", "models_file")])
def test_two_lists_contradict_each_other(both: tuple[str, str]) -> None:
    given = {"model": "/x", "models": "a=/x", "models_file": "/x.toml"}
    with pytest.raises(StartError, match=f"VIT_{both[1].upper()}: contradicts VIT_{both[0].upper()}"):
        read_model_list(read_settings(**{name: given[name] for name in both}))
