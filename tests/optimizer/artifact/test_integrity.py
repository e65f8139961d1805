"""Folders and files of strangers: nothing in them runs, and they are what they say, or refused."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
import rankc
import torch
from attack import folders, models
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from rankc.optimizer.artifact import integrity
from rankc.optimizer.artifact.artifact import verify
from rankc.optimizer.artifact.integrity import OpenFiles, checksum, file_facts
from rankc.optimizer.artifact.signing import sign
from rankc.optimizer.cli import main
from rankc.optimizer.diagnose.debug import program_of
from rankc.optimizer.errors import ArtifactError, CaptureError, CheckpointError
from rankc.optimizer.ir import Program
from rankc.optimizer.precision.probe_cache import Knowledge, Subject
from rankc.optimizer.training.checkpoint import Checkpoint
from rankers import EAGER_FP32, dlrm_inputs, optimized, small, small_inputs


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The INT8 DLRM; no test may change it."""
    return optimized("cpu-int8").save(tmp_path_factory.mktemp("untrusted") / "dlrm")


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    shutil.copytree(saved, tmp_path / "artifact")
    return tmp_path / "artifact"


def rewritten(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes a manifest as its author could: the checksum is right."""
    path = folder / "manifest.json"
    data = json.loads(path.read_text())
    change(data)
    data["checksum"] = checksum(data)
    path.write_text(json.dumps(data))


def listed(folder: Path, name: str) -> None:
    """Lists a file that was changed or added."""
    facts = file_facts(folder, [name])
    rewritten(folder, lambda m: m["files"].update(facts))


# --- nothing runs ---------------------------------------------------------------------------------

RAN: list[str] = []


@dataclass
class Plain:
    """A result as a user's model might return it."""

    score: Any
    bias: Any = None


class Pair(NamedTuple):
    """Another."""

    score: Any
    other: Any


class Called:
    """Not a container: it may not be called."""

    def __init__(self, **values: Any) -> None:
        RAN.append("called")


def spoofed(**values: Any) -> None:
    """A function that calls itself a dataclass."""
    RAN.append("spoofed")


spoofed.__dataclass_fields__ = {}  # type: ignore[attr-defined]


def outputs(kind: str, *keys: str) -> dict[str, Any]:
    items = [{"leaf": "score"}, *[{"constant": "echo ran > ran"}] * (len(keys) - 1)]
    return {"kind": kind, "keys": list(keys), "items": items}


@pytest.mark.parametrize(
    "kind",
    [
        *("os:system", "builtins:eval", "builtins:exec", "subprocess:Popen", "nt:system"),
        *("antigravity:fly", f"{__name__}:Called", f"{__name__}:spoofed", f"{__name__}:RAN.append"),
        f"{__name__}:Pair._make",
    ],
)
def test_a_class_of_a_file_is_never_called(kind: str, folder: Path) -> None:
    rewritten(folder, lambda m: m.update(outputs=outputs(kind, "command", "more")))
    loaded = rankc.load(folder)
    found = loaded(*dlrm_inputs(3, seed=0))
    assert set(found) == {"command", "more"}
    assert not RAN
    assert "antigravity" not in sys.modules


def test_a_module_of_a_file_is_never_imported(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "planted.py").write_text("raise SystemExit('imported')")
    rewritten(folder, lambda m: m.update(outputs=outputs("planted:Result", "score")))
    sys.path.insert(0, str(tmp_path))
    try:
        assert set(rankc.load(folder)(*dlrm_inputs(3, seed=0))) == {"score"}
    finally:
        sys.path.remove(str(tmp_path))
    assert "planted" not in sys.modules


def test_a_module_that_answers_to_every_name_is_not_asked(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lazy = ModuleType("lazy")
    lazy.__getattr__ = lambda name: RAN.append(name)  # type: ignore[method-assign]
    monkeypatch.setitem(sys.modules, "lazy", lazy)
    rewritten(folder, lambda m: m.update(outputs=outputs("lazy:Result", "score")))
    rankc.load(folder)(*dlrm_inputs(3, seed=0))
    assert not RAN


def test_containers_that_were_imported_are_made(folder: Path) -> None:
    for kind, keys in (("Plain", ("score", "bias")), ("Pair", ("score", "other"))):
        nesting = outputs(f"{__name__}:{kind}", *keys)
        rewritten(folder, lambda m, new=nesting: m.update(outputs=new))
        found = rankc.load(folder)(*dlrm_inputs(3, seed=0))
        assert type(found).__name__ == kind
    # Other fields than the class has: a dict, and no error of the class.
    rewritten(folder, lambda m: m.update(outputs=outputs(f"{__name__}:Plain", "score", "wrong")))
    assert set(rankc.load(folder)(*dlrm_inputs(3, seed=0))) == {"score", "wrong"}


class Evil:
    """Unpickled, it leaves a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def poisoned(path: Path, mark: Path) -> Path:
    """A program that rankc saved, with a pickle in it that runs a command."""
    rankc.capture(small(), small_inputs(4, 0)).save(path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    buffer = io.BytesIO()
    torch.save(Evil(mark), buffer)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in parts.items():
            archive.writestr(name, buffer.getvalue() if "sample_inputs" in name else data)
    return path


def test_a_pt2_runs_nothing_unless_it_is_trusted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mark, out = tmp_path / "ran", tmp_path / "out"
    path = poisoned(tmp_path / "evil.pt2", mark)
    takers: list[Callable[[], object]] = [
        lambda: rankc.capture(path),
        lambda: rankc.optimize(str(path), "cpu-fp32"),
        lambda: rankc.consolidate([path, path]),
        lambda: rankc.debug(path, Program.load(path)),
        lambda: rankc.replan(optimized("cpu-int8"), path, data=[], budget=rankc.Budget()),
        lambda: Program.load(path),
    ]
    for take in takers:
        with pytest.raises(CaptureError, match=r"evil\.pt2 may hold code.*trust_code=True"):
            take()
    for command in (
        ["optimize", str(path), "--out", str(out)],
        ["inspect", str(path)],
        ["doctor", str(path)],
        ["bisect", str(path)],
        ["consolidate", str(path), "--out", str(tmp_path / "joint.pt2")],
        ["debug", str(out), "--against", str(path)],
    ):
        assert main(command) == 1
        printed = capsys.readouterr()
        assert "may hold code" in printed.err + printed.out.replace("\n", " ")
    assert not mark.exists()
    # What the message says is true.
    with pytest.raises(Exception):  # noqa: B017, PT011 - whatever torch says of the pickle
        rankc.capture(path, trust_code=True)
    assert mark.exists()


@pytest.mark.parametrize("name", ["eager", "inductor", "mlir"])
def test_an_artifact_that_holds_code_opens_only_if_it_is_trusted(
    name: str, folder: Path, tmp_path: Path
) -> None:
    mark = tmp_path / "ran"
    poisoned(folder / "model.pt2", mark)
    listed(folder, "model.pt2")
    rewritten(folder, lambda m: m.update(backend=name))
    with pytest.raises(ArtifactError, match=r"holds code.*trust_code=True"):
        rankc.load(folder)
    assert not mark.exists()


def test_what_is_no_code_of_its_backend_is_not_read_as_code(folder: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    poisoned(folder / "model.pt2", mark)
    listed(folder, "model.pt2")
    program = program_of(rankc.load(folder))
    assert program.signature.names == ("dense", "ids")
    assert not mark.exists()


def test_an_own_artifact_of_code_opens_as_the_message_says(tmp_path: Path) -> None:
    made = rankc.optimize(small(), EAGER_FP32, inputs=small_inputs(4, 0), pipeline="exact")
    place = made.save(tmp_path / "out")
    with pytest.raises(ArtifactError, match=r"PyTorch unpickles model\.pt2"):
        rankc.load(place)
    inputs = small_inputs(9, 0)
    assert torch.equal(rankc.load(place, trust_code=True)(*inputs), made(*inputs))


# --- a folder is what it says ---------------------------------------------------------------------


def test_every_flipped_bit_is_told(folder: Path) -> None:
    """In every file: the graph, the data, the manifest and the reports."""
    rng = np.random.default_rng(0)
    for name in sorted(os.listdir(folder)):
        whole = (folder / name).read_bytes()
        for _ in range(25):
            changed = bytearray(whole)
            changed[rng.integers(len(whole))] ^= 1 << rng.integers(8)
            (folder / name).write_bytes(changed)
            with pytest.raises(ArtifactError, match=f"(?s){folder}.*damaged"):
                rankc.load(folder)
        (folder / name).write_bytes(whole)
    rankc.load(folder)


def test_what_is_not_listed_is_refused(folder: Path) -> None:
    (folder / "notes").mkdir()
    with pytest.raises(ArtifactError, match=r"doesn't list: notes. Remove it"):
        rankc.load(folder)
    (folder / "notes").rmdir()
    rankc.load(folder)
    rewritten(folder, lambda m: m.update(files={}))
    with pytest.raises(ArtifactError, match="lists no files"):
        rankc.load(folder)


@pytest.mark.parametrize("name", ["manifest.json", "report.json", "report.txt", "model.onnx.data"])
def test_links_are_refused(name: str, folder: Path, tmp_path: Path) -> None:
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match=f"{name} is a link"):
        rankc.load(folder)
    with pytest.raises(ArtifactError, match=f"{name} is a link"):
        verify(folder)
    # As the message says.
    shutil.copytree(folder, tmp_path / "copied", symlinks=False)
    rankc.load(tmp_path / "copied")


def test_a_linked_report_is_not_shown(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "secret").write_text("a secret")
    (folder / "report.txt").unlink()
    (folder / "report.txt").symlink_to(tmp_path / "secret")
    assert main(["inspect", str(folder)]) == 1
    printed = capsys.readouterr()
    assert "report.txt is a link" in printed.err
    assert "a secret" not in printed.out


def test_no_file_is_waited_for(folder: Path) -> None:
    (folder / "report.txt").unlink()
    os.mkfifo(folder / "report.txt")
    with pytest.raises(ArtifactError, match=r"report\.txt is no file"):
        rankc.load(folder)


def test_a_link_to_the_whole_folder_is_followed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(folder)
    rankc.load(tmp_path / "current")


def test_a_row_that_is_overwritten_while_open_is_told(folder: Path) -> None:
    loaded = rankc.load(folder)
    inputs = dlrm_inputs(50, seed=1)
    want = loaded(*inputs)
    os.utime(folder / "model.onnx.data")  # touched, and the same
    assert torch.equal(loaded(*inputs), want)
    data = np.memmap(folder / "model.onnx.data", np.uint8, "r+")
    data[:64] ^= 0xFF
    data.flush()
    for _ in range(2):
        with pytest.raises(ArtifactError, match="was changed while the artifact was open"):
            loaded(*inputs)
    with pytest.raises(ArtifactError, match="was changed while"):
        loaded.run({"dense": inputs[0], "ids": inputs[1]})
    data[:64] ^= 0xFF
    data.flush()
    assert torch.equal(rankc.load(folder)(*inputs), want)


def test_a_folder_that_is_replaced_or_removed_while_open_still_scores(
    folder: Path, tmp_path: Path
) -> None:
    loaded = rankc.load(folder)
    inputs = dlrm_inputs(5, seed=1)
    want = loaded(*inputs)
    folder.rename(tmp_path / "old")
    assert torch.equal(loaded(*inputs), want)
    shutil.rmtree(tmp_path / "old")
    assert torch.equal(loaded(*inputs), want)


@pytest.fixture
def large(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An artifact whose data file counts as large: hashed by blocks, beside the calls."""
    monkeypatch.setattr(integrity, "LAZY_BYTES", 1000)
    monkeypatch.setattr(integrity, "BLOCK_BYTES", 4096)
    listed(folder, "model.onnx.data")
    return folder


def test_large_files_are_hashed_by_blocks(large: Path) -> None:
    facts = json.loads((large / "manifest.json").read_text())["files"]["model.onnx.data"]
    data = (large / "model.onnx.data").read_bytes()
    blocks = [data[at : at + 4096] for at in range(0, len(data), 4096)]
    assert facts["blocks"]["sha256"] == [hashlib.sha256(b).hexdigest() for b in blocks]
    assert facts["sha256"] == hashlib.sha256(data).hexdigest()
    opened = OpenFiles(large, {"model.onnx.data": facts})
    opened.finish()
    opened.check()


@pytest.mark.parametrize("block", [0, 1, -1])
def test_a_wrong_block_of_a_large_file_is_told(block: int, large: Path) -> None:
    data = bytearray((large / "model.onnx.data").read_bytes())
    data[4096 * block if block >= 0 else -1] ^= 1
    (large / "model.onnx.data").write_bytes(data)
    with pytest.raises(ArtifactError, match=r"model\.onnx\.data isn't what was written"):
        rankc.load(large)._files.finish()  # type: ignore[union-attr]
    with pytest.raises(ArtifactError, match=r"model\.onnx\.data isn't what was written"):
        verify(large)


def test_an_artifact_of_an_earlier_version_loads(folder: Path) -> None:
    """Its manifest has neither a checksum nor facts of the reports."""
    path = folder / "manifest.json"
    data = json.loads(path.read_text())
    del data["checksum"], data["reports"]
    path.write_text(json.dumps(data))
    inputs = dlrm_inputs(5, seed=1)
    assert torch.equal(rankc.load(folder)(*inputs), optimized("cpu-int8")(*inputs))
    assert "an older rankc wrote this artifact" in verify(folder)[-2]


def test_a_later_format_is_refused_by_name(folder: Path) -> None:
    rewritten(folder, lambda m: m.update(format=2, files="elsewhere"))
    with pytest.raises(ArtifactError, match="has format 2, this rankc reads 1"):
        rankc.load(folder)


# --- signatures -----------------------------------------------------------------------------------


def key_pair(folder: Path, name: str) -> tuple[Path, Path]:
    """A private and a public key, as openssl writes them."""
    private = ed25519.Ed25519PrivateKey.generate()
    secret, public = folder / f"{name}.pem", folder / f"{name}.pub.pem"
    encoding = serialization.Encoding.PEM
    secret.write_bytes(
        private.private_bytes(
            encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    public.write_bytes(
        private.public_key().public_bytes(encoding, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return secret, public


def test_a_signed_artifact(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    secret, public = key_pair(tmp_path, "ours")
    _, other = key_pair(tmp_path, "theirs")
    place = str(folder)
    assert main(["verify", place, "--key", str(public)]) == 1
    assert "isn't signed: it has no manifest.sig" in capsys.readouterr().err
    assert main(["sign", place, "--key", str(secret)]) == 0
    assert main(["verify", place, "--key", str(public)]) == 0
    assert f"signed by {public}" in capsys.readouterr().out
    assert main(["verify", place]) == 0
    assert "signed; --key says by whom" in capsys.readouterr().out
    rankc.load(folder)
    rankc.load(folder, key=public)
    assert main(["verify", place, "--key", str(other)]) == 1
    assert "another key signed it" in capsys.readouterr().err
    with pytest.raises(ArtifactError, match="another key signed it"):
        rankc.load(folder, key=other)
    # A forger can mend every hash, and not the signature.
    data = bytearray((folder / "model.onnx.data").read_bytes())
    data[5] ^= 1
    (folder / "model.onnx.data").write_bytes(data)
    listed(folder, "model.onnx.data")
    rankc.load(folder)
    with pytest.raises(ArtifactError, match="or its manifest was changed afterwards"):
        rankc.load(folder, key=public)


@pytest.mark.parametrize("text", ["", "????", "AAAA", "\xff", "é" * 40])
def test_a_damaged_signature(text: str, folder: Path, tmp_path: Path) -> None:
    _, public = key_pair(tmp_path, "ours")
    (folder / "manifest.sig").write_bytes(text.encode("latin-1"))
    with pytest.raises(ArtifactError, match=r"isn't signed by|is damaged"):
        rankc.load(folder, key=public)


def test_what_is_no_key(folder: Path, tmp_path: Path) -> None:
    secret, public = key_pair(tmp_path, "ours")
    (tmp_path / "text").write_text("a key")
    rsa = ec.generate_private_key(ec.SECP256R1())
    (tmp_path / "curve").write_bytes(
        rsa.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    for key, message in (
        (tmp_path / "missing", "is no private key"),
        (tmp_path / "text", "is no private key"),
        (public, "is no private key"),
        (tmp_path / "curve", "is no private Ed25519 key; make a pair with openssl genpkey"),
    ):
        with pytest.raises(ArtifactError, match=message):
            sign(folder, key)
    with pytest.raises(ArtifactError, match="is no public key"):
        rankc.load(folder, key=secret)


def test_only_what_is_whole_is_signed(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    secret, _ = key_pair(tmp_path, "ours")
    (folder / "more").write_text("")
    assert main(["sign", str(folder), "--key", str(secret)]) == 1
    assert "doesn't list: more" in capsys.readouterr().err
    (folder / "more").unlink()
    path = folder / "manifest.json"
    data = json.loads(path.read_text())
    del data["checksum"], data["reports"]
    path.write_text(json.dumps(data))
    assert main(["sign", str(folder), "--key", str(secret)]) == 1
    assert "Load and save it again" in capsys.readouterr().err
    rankc.load(folder).save(tmp_path / "again")
    assert main(["sign", str(tmp_path / "again"), "--key", str(secret)]) == 0


# --- hostile files, in a short form ---------------------------------------------------------------


def numpy_inputs(rows: int) -> tuple[np.ndarray[Any, Any], ...]:
    return tuple(value.numpy() for value in dlrm_inputs(rows, seed=0))


def test_changed_fields_of_a_manifest_or_report(saved: Path, tmp_path: Path) -> None:
    """``make attack`` tries one in eight; here it is one in 499."""
    counts, faults = folders.forgeries(saved, numpy_inputs(4), tmp_path, 499)
    assert faults == []
    assert counts["refused"] >= 5


def test_folders_that_were_tampered_with(saved: Path, tmp_path: Path) -> None:
    counts, faults = folders.tampered(saved, numpy_inputs(4), tmp_path, 60)
    assert faults == []
    assert counts["refused"] >= 50


def test_hostile_checkpoints_of_a_probe(tmp_path: Path) -> None:
    path, subject = tmp_path / "probe.jsonl", Subject("model", "rows")
    head = json.dumps({"format": 1, "model": "model", "rows": "rows"})
    line = json.dumps({"site": "over.0", "recipe": "int8", "damage": {"click": 0.1}})
    texts = [b"\xff\xfe", b"\0" * 100, b"null\n[]", b"[" * 100_000, f"{head}\n[]\n5\n".encode()]
    for keys in folders.places(json.loads(head)):
        changed = (folders.changed(json.loads(head), keys, v) for v in (None, *folders.VALUES))
        texts += [f"{text}\n{line}\n".encode(errors="surrogatepass") for text in changed]
    for keys in folders.places(json.loads(line)):
        changed = (folders.changed(json.loads(line), keys, v) for v in (None, *folders.VALUES))
        texts += [f"{head}\n{text}\n".encode(errors="surrogatepass") for text in changed]
    refused = 0
    for text in texts:
        path.write_bytes(text)
        try:
            known = Knowledge.open(path, subject)
        except CheckpointError as error:
            said = str(error)
            refused += 1
            assert str(path) in said
        else:
            assert all(np.isfinite(list(d.values())).all() for d in known.damages.values())
    assert refused > len(texts) / 2
    path.unlink()
    path.mkdir()
    with pytest.raises(CheckpointError, match="no checkpoint of a probe"):
        Knowledge.open(path, subject)


def test_hostile_rounds_of_a_distillation(tmp_path: Path) -> None:
    program = rankc.capture(small(), small_inputs(4, 0))
    checkpoint = Checkpoint(tmp_path / "kept", "signature", "stage", trust_code=True)
    checkpoint.save(0, program, {"seconds": 1.0, "flops": 0.5})
    found = checkpoint.load(0)
    assert found is not None
    assert found[1] == {"seconds": 1.0, "flops": 0.5}
    folder, mark = tmp_path / "kept" / "round-01", tmp_path / "ran"
    good = (folder / "state.json").read_text()
    for text in ("", "[]", "5", "[" * 100_000, '{"seconds": "x"}', '{"seconds": NaN}', "\udcff"):
        (folder / "state.json").write_bytes(text.encode(errors="surrogateescape"))
        with pytest.raises(CheckpointError, match=r"state\.json is damaged"):
            checkpoint.load(0)
    (folder / "state.json").write_text(good)
    poisoned(folder / "program.pt2", mark)
    with pytest.raises(CheckpointError, match="isn't what was written"):
        checkpoint.load(0)
    assert not mark.exists()
    # Whoever writes a program can write its hash: nothing is opened unless that is asked for.
    own = {
        **json.loads(good),
        "sha256": file_facts(folder, ["program.pt2"])["program.pt2"]["sha256"],
    }
    (folder / "state.json").write_text(json.dumps(own))
    with pytest.raises(CheckpointError, match=r"program\.pt2 may hold code.*trust_code=True"):
        Checkpoint(tmp_path / "kept", "signature", "stage").load(0)
    assert not mark.exists()
    (folder / "program.pt2").write_bytes(b"PK")
    (folder / "state.json").write_text('{"seconds": 1.0, "flops": 0.5}')
    with pytest.raises(CheckpointError, match=r"program\.pt2 is damaged"):
        checkpoint.load(0)


def test_hostile_model_files(tmp_path: Path) -> None:
    made = rankc.optimize(small(), "cpu-fp32", inputs=small_inputs(4, 0), pipeline="exact")
    model = onnx.load(str(made.onnx_path))
    onnx.save(model, tmp_path / "model.onnx")
    counts, faults = models.onnx_files(tmp_path / "model.onnx", tmp_path, 0, 8)
    assert faults == []
    assert counts["refused"] >= 1
    rankc.capture(small(), small_inputs(4, 0)).save(tmp_path / "model.pt2")
    counts, faults = models.pt2_files(tmp_path / "model.pt2", tmp_path, 199)
    assert faults == []
    assert counts["refused"] >= 1
