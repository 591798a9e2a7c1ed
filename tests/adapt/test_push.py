"""A folder goes to the hub whole; what could not is refused before anything long, and leaves the folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import TOKEN, Hub, hub
from huggingface_hub import constants

from lingraft.adapt.push import check_push, push
from lingraft.errors import ConfigError, LingraftError

# The library's own call of another one.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(
            constants, "HF_HUB_DISABLE_XET", True
        )  # the store for large files is the hub's own
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


def model_folder(folder: Path, shards: int) -> Path:
    (folder / "report").mkdir(parents=True)
    names = [f"model-{number:05d}-of-{shards:05d}.safetensors" for number in range(1, shards + 1)]
    for name in (*names, "config.json", "lingraft.json", "report/index.html"):
        (folder / name).write_text(name)
    (folder / "README.md").write_text("---\nlanguage: [th]\n---\n# m\n")
    return folder


def test_a_folder_is_uploaded_whole_and_what_an_earlier_upload_left_goes(server: Hub, tmp_path: Path) -> None:
    first, second = model_folder(tmp_path / "a", 3), model_folder(tmp_path / "b", 2)
    check_push("owner/model")
    assert push(first, "owner/model", private=True) == f"{server.address}/owner/model"
    assert server.private == {"owner/model"}
    found = server.repositories["owner/model"]
    expected = {path.relative_to(first).as_posix() for path in first.rglob("*") if path.is_file()}
    assert found.keys() - {".gitattributes"} == expected
    assert found["model-00002-of-00003.safetensors"] == b"model-00002-of-00003.safetensors"
    check_push("owner/model")  # it is one's own now
    push(second, "owner/model")
    assert {name for name in found if name.endswith(".safetensors")} == {
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    }


def test_a_repository_that_holds_another_model_is_refused(server: Hub) -> None:
    server.repositories["owner/other"] = {".gitattributes": b"", "README.md": b"", "model.safetensors": b"x"}
    with pytest.raises(
        ConfigError, match=r"owner/other: holds model.safetensors and other files that lingraft did not"
    ):
        check_push("owner/other")
    server.repositories["owner/empty"] = {".gitattributes": b"", "README.md": b""}
    check_push("owner/empty")


@pytest.mark.parametrize("name", ["model", "a/b/c", "/b", "a/", "owner/mo del", "owner/..", "owner/x--y"])
def test_what_is_no_repository_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="is no id of a repository on the hub; write OWNER/NAME"):
        check_push(name)


def test_without_token_or_network_the_error_says_what_to_do(
    server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(ConfigError, match=r"the hub does not let it be uploaded .*Check the token"):
        check_push("owner/model")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match=r"there is no token .*hf auth login.*HF_TOKEN"):
        check_push("owner/model")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE is set"):
        check_push("owner/model")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ConfigError, match=r"does not let it be uploaded .*and the connection"):
        check_push("owner/model")
    assert server.repositories == {}


def test_a_token_that_may_only_read_is_refused(server: Hub) -> None:
    server.role = "read"
    with pytest.raises(ConfigError, match=r"may only read; make one that may write"):
        check_push("owner/new")
    server.role = "fineGrained"  # of which the hub does not say here what it may
    check_push("owner/new")


def test_an_upload_that_breaks_off_names_the_folder_and_the_command(server: Hub, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "a", 1)
    server.fails_at = "/commit/"
    with pytest.raises(
        LingraftError, match=rf"could not be uploaded .*whole in .*hf upload owner/model {folder}"
    ):
        push(folder, "owner/model")
    assert (folder / "config.json").read_text() == "config.json"
