"""Finding GGUF files: in the person's folders and in other programs' caches, bounded, and each file once."""

from __future__ import annotations

import os
import shutil

import pytest

from docmind.backends import gguf_files, llama_cpp
from docmind.config import Config, load_config
from docmind.errors import BackendError, ModelNotFound
from docmind.profiles import load_profiles


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A home folder with nothing in it."""
    monkeypatch.setenv("HOME", str(tmp_path / "person"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "person"))
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "DOCMIND_MODELS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DOCMIND_MODEL_CACHES", "1")
    (tmp_path / "home" / "models").mkdir(parents=True)
    return tmp_path


def write(path, content=b"GGUF"):
    """A file, with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def found(machine):
    """Names and places."""
    return [(file.name, file.place) for file in gguf_files.gguf_files(load_config(machine / "home"))]


def in_hub_cache(machine, repository, name, content=b"GGUF", revision="a" * 40, hub=None):
    """A file as the hub's libraries keep it: bytes in blobs, a link in the snapshot of a revision."""
    folder = (hub or machine / "person" / ".cache" / "huggingface" / "hub") / f"models--{repository.replace('/', '--')}"
    blob = write(folder / "blobs" / f"{hash((repository, name)) & 0xFFFF:064x}", content)
    link = folder / "snapshots" / revision / name
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(os.path.relpath(blob, link.parent))
    return link


def test_each_place_is_looked_at_the_persons_own_first(machine, monkeypatch):
    """Own and shipped folders one level deep; named ones and caches by publisher and repository."""
    monkeypatch.setenv("DOCMIND_MODELS", os.pathsep.join([str(machine / "disk"), "", str(machine / "none")]))
    write(machine / "home" / "models" / "own.gguf")
    write(machine / "home" / "models" / "sub" / "below.gguf")
    write(machine / "home" / "models" / "sub" / "deeper" / "not seen.gguf")
    write(machine / "disk" / "maker" / "repo" / "named.GGUF")
    write(machine / "person" / ".lmstudio" / "models" / "maker" / "repo" / "studio.gguf")
    write(machine / "person" / ".cache" / "lm-studio" / "models" / "maker" / "repo" / "older.gguf")
    in_hub_cache(machine, "maker/repo", "hub.gguf")
    in_hub_cache(machine, "maker/large", "Q4_K_M/large-00001-of-00002.gguf")
    in_hub_cache(machine, "maker/large", "Q4_K_M/large-00002-of-00002.gguf")
    assert found(machine) == [
        ("own", "own"), ("below", "own"), ("named", "named"), ("studio", "cache"), ("older", "cache"),
        ("large", "cache"), ("hub", "cache"),
    ]  # fmt: skip
    monkeypatch.setenv("DOCMIND_MODEL_CACHES", "0")
    assert [place for _, place in found(machine)] == ["own", "own", "named"]


@pytest.mark.parametrize("variable", ["HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"])
def test_the_hub_cache_is_where_the_environment_says(machine, monkeypatch, variable):
    """As the hub's own libraries read it."""
    monkeypatch.setenv(variable, str(machine / "elsewhere"))
    inner = {"HF_HUB_CACHE": "", "HF_HOME": "hub", "XDG_CACHE_HOME": "huggingface/hub"}[variable]
    in_hub_cache(machine, "maker/repo", "hub.gguf", hub=machine / "elsewhere" / inner)
    assert found(machine) == [("hub", "cache")]


def test_a_file_that_is_there_twice_is_listed_once(machine, monkeypatch):
    """Two revisions of the hub, a link into a cache, a folder named twice; a link of the person's is a name."""
    in_hub_cache(machine, "maker/repo", "hub.gguf")
    in_hub_cache(machine, "maker/repo", "hub.gguf", revision="b" * 40)
    real = write(machine / "disk" / "one.gguf")
    (machine / "disk" / "again.gguf").symlink_to(real)
    monkeypatch.setenv("DOCMIND_MODELS", os.pathsep.join([str(machine / "disk")] * 2))
    (machine / "home" / "models" / "mine.gguf").symlink_to(real)
    (machine / "home" / "models" / "mine too.gguf").symlink_to(real)
    assert found(machine) == [("mine too", "own"), ("mine", "own"), ("hub", "cache")]


def test_what_is_no_model_is_left_out(machine):
    """Projectors, later parts, broken links, links in a circle, folders and hidden files of that name."""
    folder = machine / "home" / "models"
    for name in ("mmproj-x-f16.gguf", "x-mmproj.gguf", "x-00002-of-00003.gguf", "._x.gguf", "x.gguf.part", "x.bin"):
        write(folder / name)
    (folder / "broken.gguf").symlink_to(folder / "nowhere")
    (folder / "circle.gguf").symlink_to(folder / "circle.gguf")
    (folder / "round").symlink_to(folder)
    (folder / "folder.gguf").mkdir()
    assert found(machine) == []


def test_a_folder_named_by_mistake_is_looked_at_in_part(machine, monkeypatch):
    """Whatever is in it."""
    monkeypatch.setattr(gguf_files, "MAX_ENTRIES", 50)
    monkeypatch.setattr(gguf_files, "MAX_FILES", 7)
    monkeypatch.setenv("DOCMIND_MODELS", str(machine / "disk"))
    for number in range(40):
        write(machine / "disk" / f"{number}.gguf")
        write(machine / "disk" / "many" / f"inner {number}.gguf")
    assert len(found(machine)) == 7
    monkeypatch.setattr(gguf_files, "MAX_FILES", 300)
    assert len(found(machine)) <= 50


def test_two_models_of_one_name_are_told_apart(machine):
    """The later has a number."""
    write(machine / "home" / "models" / "x.gguf")
    in_hub_cache(machine, "maker/repo", "x.gguf", b"GGUF2")
    assert found(machine) == [("x", "own"), ("x (2)", "cache")]


def test_profiles_come_from_the_two_folders_only(machine, monkeypatch):
    """A named folder with models is no folder of profiles."""
    monkeypatch.setenv("DOCMIND_MODELS", str(machine / "disk"))
    write(machine / "disk" / "other.toml", b"backend = 3")
    assert "other" not in [profile.name for profile in load_profiles(load_config(machine / "home"))]


# Deleting


def test_deleting_removes_all_parts_and_checksums_of_an_own_model(machine):
    """And nothing else."""
    folder = machine / "home" / "models"
    for number in (1, 2):
        write(folder / f"big-0000{number}-of-00002.gguf")
        write(folder / f"big-0000{number}-of-00002.gguf.sha256")
    write(folder / "other.gguf")
    llama_cpp.delete(load_config(machine / "home"), "big")
    assert [path.name for path in folder.iterdir()] == ["other.gguf"]


def test_deleting_a_link_leaves_what_it_leads_to(machine):
    """The name is gone, the file of another program is not."""
    real = write(machine / "disk" / "real.gguf")
    (machine / "home" / "models" / "mine.gguf").symlink_to(real)
    llama_cpp.delete(Config(home=machine / "home"), "mine")
    assert real.exists()
    assert not (machine / "home" / "models" / "mine.gguf").is_symlink()


def test_what_is_not_the_persons_own_is_never_deleted(machine, monkeypatch, starter_path):
    """The starter, a named folder, a cache; the error says where it lies."""
    monkeypatch.setenv("DOCMIND_MODELS", str(machine / "disk"))
    named = write(machine / "disk" / "named.gguf")
    cached = in_hub_cache(machine, "maker/repo", "cached.gguf")
    config = load_config(machine / "home")
    for name, path in [("named", named), ("cached", cached), (llama_cpp.STARTER, starter_path)]:
        with pytest.raises(BackendError) as caught:
            llama_cpp.delete(config, name)
        assert caught.value.reason == "not_own"
        assert str(path) in caught.value.hint
        assert path.exists()
    with pytest.raises(ModelNotFound):
        llama_cpp.delete(config, "nothing")


# Metadata without loading


def test_models_of_a_cache_are_listed_with_what_their_header_says(machine, starter_path):
    """Without loading; what makes no text has its reason."""
    link = in_hub_cache(machine, "maker/repo", "starter-copy.gguf")
    shutil.copyfile(starter_path, link.resolve())
    head = starter_path.read_bytes()
    vectors = head.replace(b"\x05\x00\x00\x00\x00\x00\x00\x00llama", b"\x04\x00\x00\x00\x00\x00\x00\x00bert", 1)
    write(machine / "home" / "models" / "vectors.gguf", vectors)
    listed = {model.name: model for model in llama_cpp.models(load_config(machine / "home"))}
    copy = listed["starter-copy"]
    assert (copy.context_window, copy.quantization, copy.loaded, copy.reason) == (8192, "Q4_1", False, None)
    assert copy.size_bytes == starter_path.stat().st_size
    assert listed["vectors"].reason == "no_text_generation"
