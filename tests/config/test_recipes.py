"""The recipes are found wherever lingraft is installed, and a wrong name is answered with the right one."""

from __future__ import annotations

from pathlib import Path

import pytest

from lingraft.config import recipes as module
from lingraft.config.recipes import recipe, recipe_folder, recipes
from lingraft.errors import ConfigError


def test_the_checkout_holds_the_quickstart_recipe() -> None:
    assert recipes()["quickstart"] == recipe("quickstart") == recipe("quickstart.yaml")
    assert recipe("quickstart").read_text(encoding="utf-8").count("name: quickstart") == 1


def test_a_misspelt_recipe_is_refused_with_the_closest_name() -> None:
    with pytest.raises(ConfigError, match=r"'quikstart' is not a recipe.*Did you mean 'quickstart'"):
        recipe("quikstart")


def test_an_installed_package_uses_its_own_copy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "site-packages" / "lingraft"
    (package / "recipes").mkdir(parents=True)
    (package / "recipes" / "mine.yaml").write_text("name: mine\n", encoding="utf-8")
    monkeypatch.setattr(module, "_PACKAGE", package)
    assert recipe_folder() == package / "recipes"
    assert list(recipes()) == ["mine"]


def test_an_incomplete_installation_is_named_as_such(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "_PACKAGE", tmp_path / "lib" / "site-packages" / "lingraft")
    with pytest.raises(ConfigError, match=r"recipes are missing.*Install lingraft again"):
        recipe_folder()
