"""Archives, headers and links made to read other files, to write some, or to exhaust memory: refused."""

import json
import struct
import zipfile

import h5py
import jax.numpy as jnp
import msgpack
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import serialization

from resnet_jax.weights.read import read_arrays
from tests.weights.bounds import refused
from tests.weights.files import pickled, tensor, tensors, write_state_dict, write_zip

ONES = {"w": np.ones(16, np.float32)}
CONTENT = {"0": ONES["w"].tobytes()}


@pytest.mark.parametrize("name", ["archive/../../evil", "../evil", "/tmp/evil", "archive/data/..\\evil", "\\evil"])
def test_names_that_lead_out_of_an_archive_are_refused(tmp_path, name):
    folder = tmp_path / "inner"
    folder.mkdir()
    write_zip(folder / "w.pth", tensors(ONES), CONTENT, {name: b"evil"})
    assert "nothing was extracted" in refused(folder / "w.pth")
    assert list(tmp_path.iterdir()) == [folder] and list(folder.iterdir()) == [folder / "w.pth"]


def test_a_storage_outside_the_archive_is_not_looked_for(tmp_path):
    (tmp_path / "secret").write_bytes(CONTENT["0"])
    write_zip(tmp_path / "w.pth", {"w": tensor("../../secret", "float32", 16, 0, (16,), (1,))}, {})
    assert "expected the entry 'archive/data/../../secret', found none" in refused(tmp_path / "w.pth")


def edited(path, offset: int, values: bytes):
    content = bytearray(path.read_bytes())
    content[offset : offset + len(values)] = values
    path.write_bytes(content)


def directory(path, number: int) -> int:
    """The offset of an entry in the directory at an archive's end."""
    content, offset = path.read_bytes(), -1
    for _ in range(number + 1):
        offset = content.index(b"PK\x01\x02", offset + 1)
    return offset


def test_entries_that_overlap_are_refused(tmp_path):
    path = tmp_path / "w.pth"
    write_zip(path, tensors(ONES), CONTENT, {"archive/data/1": bytes(64)})
    edited(path, directory(path, 2) + 42, struct.pack("<I", 0))  # the third begins where the first does
    assert "overlaps another" in refused(path)


@pytest.mark.parametrize(
    "field, value",
    [
        (8, b"\x01\x00"),  # encrypted
        (10, b"\x0c\x00"),  # bzip2
        (10, b"\x63\x00"),  # an unknown compression
        (20, struct.pack("<I", 2**31)),  # compressed size
        (24, struct.pack("<I", 2**31)),  # size
        (24, struct.pack("<I", 60)),
        (16, b"abcd"),  # CRC-32
        (42, struct.pack("<I", 2**31)),  # offset
        (46, b"x"),  # another name than at the entry
    ],
)
def test_a_directory_that_lies_is_refused(tmp_path, field, value):
    path = tmp_path / "w.pth"
    write_zip(path, tensors(ONES), CONTENT)
    edited(path, directory(path, 1) + field, value)
    assert refused(path)


def test_an_entry_of_another_name_than_the_directory_says_is_refused(tmp_path):
    path = tmp_path / "w.pth"
    write_zip(path, tensors(ONES), CONTENT)
    edited(path, path.read_bytes().index(b"archive/data/0"), b"another")
    assert "expected the entry 'archive/data/0', found" in refused(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_entries_of_one_name_are_refused(tmp_path):
    write_zip(tmp_path / "w.pth", tensors(ONES), CONTENT, {"archive/data/0": bytes(64)})
    assert "'archive/data/0' twice" in refused(tmp_path / "w.pth")


def test_a_compressed_storage_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickled({"w": tensor("0", "float32", 10**7, 0, (10**7,), (1,))}))
        archive.writestr("archive/data/0", bytes(4 * 10**7))
    assert "expected arrays of at most" in refused(tmp_path / "w.pth")
    with zipfile.ZipFile(tmp_path / "w.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickled(tensors(ONES)))
        archive.writestr("archive/data/0", CONTENT["0"])
    assert "which is not compressed" in refused(tmp_path / "w.pth")


def test_an_archive_of_a_million_entries_is_refused(tmp_path):
    write_state_dict(tmp_path / "w.pth", ONES)
    content = (tmp_path / "w.pth").read_bytes()
    (tmp_path / "w.pth").write_bytes(content[:-22] + 10**6 * (b"PK\x01\x02" + bytes(42)) + content[-22:])
    assert "at most 100,000 entries" in refused(tmp_path / "w.pth")


@pytest.mark.parametrize("name", ["archive/code/__torch__.py", "archive/constants.pkl"])
def test_programs_are_refused(tmp_path, name):
    write_zip(tmp_path / "w.pt", tensors(ONES), CONTENT, {name: b"import os"})
    assert "a TorchScript program, which is code; nothing was executed" in refused(tmp_path / "w.pt")


class Payload:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


def test_pickled_objects_in_npz_are_refused_unexecuted(tmp_path):
    path, marker = tmp_path / "w.npz", tmp_path / "marker"
    np.savez(path, w=np.array([Payload(marker)], dtype=object))
    assert "pickled objects; nothing was executed" in refused(path)
    assert not marker.exists()
    np.load(path, allow_pickle=True)["w"]
    assert marker.exists()  # the payload is live


def npy(shape: str, descr: str = "'<f4'", content: bytes = bytes(64), version: bytes = b"\1\0") -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}".ljust(117).encode() + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H", len(header)) + header + content


@pytest.mark.parametrize(
    "content",
    [
        npy("(10**12,)"),
        npy("(1000000000000,)"),
        npy("(4294967296, 4294967296)"),
        npy("(-16,)"),
        npy("(16,)", descr="__import__('os')"),
        npy("(1,)", descr="'|O'", content=pickled(1)),
        npy("(1,)", descr="[('a', '|O'), ('b', '<f4')]"),
        npy("(16,)", version=b"\x09\0"),
        npy("(" * 50),
        b"no array",
    ],
)
def test_an_npz_entry_that_lies_about_its_size_is_refused(tmp_path, content):
    with zipfile.ZipFile(tmp_path / "w.npz", "w") as archive:
        archive.writestr("w.npy", content)
    assert refused(tmp_path / "w.npz")


def test_a_compressed_npz_out_of_proportion_is_refused(tmp_path):
    np.savez_compressed(tmp_path / "w.npz", w=np.zeros(10**7, np.float32))
    assert "expected arrays of at most" in refused(tmp_path / "w.npz")


def header(tensors_: object, content: int = 64, length: int | None = None) -> bytes:
    text = (tensors_ if isinstance(tensors_, str) else json.dumps(tensors_)).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + bytes(content)


def entry(start: int, end: int, shape: object = (16,), dtype: object = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    "content",
    [
        header({"w": entry(0, 64)}, length=2**64 - 1),
        header({"w": entry(0, 64)}, length=2**40),
        header({"w": entry(0, 64)}, length=200),
        header({"w": entry(0, 64)}, length=0),
        header({"w": entry(0, 64), "v": entry(0, 64)}),  # overlapping
        header({"w": entry(0, 64), "v": entry(32, 96)}, content=96),
        header({"w": entry(64, 128)}),  # out of the file
        header({"w": entry(0, 64)}, content=128),  # bytes that belong to nothing
        header({"w": entry(0, 2**62, [2**60])}),
        header({"w": entry(0, 64, [2**40, 2**40])}),
        header({"w": entry(0, 0, [2**63, 2])}, content=0),
        header({"w": entry(64, 0)}),
        header({"w": entry(-64, 0)}),
        header({"w": entry(0, 64, [17])}),
        header({"w": entry(0, 64, dtype="O")}),
        header({"w": entry(0, 64, shape="16")}),
        header({"w": 3}),
        header([1, 2]),
        header("{" * 1000),
        header('{"a":' * 100_000),
        header("{" + "[" * 100_000),
        header('{"w": {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]}'),
        header({"__metadata__": {"a": {"b": 1}}, "w": entry(0, 64)}),
    ],
)
def test_a_safetensors_header_that_lies_is_refused(tmp_path, content):
    (tmp_path / "w.safetensors").write_bytes(content)
    assert refused(tmp_path / "w.safetensors")


def test_a_safetensors_header_of_more_than_100_mb_is_refused(tmp_path):
    with (tmp_path / "w.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", 100_000_001) + b"{")
        file.truncate(110_000_000)  # sparse
    assert "header of at most 100,000,000 bytes, found 100,000,001" in refused(tmp_path / "w.safetensors")


def external_link(file, secret):
    file["layers/conv/vars/0"] = h5py.ExternalLink(str(secret), "w")


def external_group(file, secret):
    file["layers"] = h5py.ExternalLink(str(secret), "/")


def external_model(file, secret):
    file["model_weights"] = h5py.ExternalLink(str(secret), "/")


def soft_link(file, secret):
    file["w"] = np.ones(3)
    file["v"] = h5py.SoftLink("/w")


def virtual(file, secret):
    layout = h5py.VirtualLayout((16,), "f4")
    layout[:] = h5py.VirtualSource(str(secret), "w", (16,))
    file.create_virtual_dataset("w", layout)


def external_storage(file, secret):
    file.create_dataset("w", (16,), "f4", external=[(str(secret), 0, 64)])


def compressed(file, secret):
    file.create_dataset("w", data=np.zeros(10**6, np.float32), compression="gzip")


def never_written(file, secret):
    file.create_dataset("w", (10**10,), "f4", fillvalue=1)


def huge_chunk(file, secret):
    file.create_dataset("w", (1,), "f4", maxshape=(None,), chunks=(10**8,))


def strings(file, secret):
    file["w"] = ["a", "b"]


def no_shape(file, secret):
    file["w"] = h5py.Empty("f4")


def fields(file, secret):
    file["w"] = np.zeros(3, [("a", "f4"), ("b", "f8")])


def cycle(file, secret):
    file.create_group("a")["b"] = file["/"]


def one_array_a_thousand_times(file, secret):
    file["w"] = np.zeros(10**5, np.float32)
    for number in range(1000):
        file[str(number)] = file["w"]


def one_name_twice(file, secret):
    file.attrs["layer_names"] = [b"a", b"b"]
    file["a/kernel"] = file["b/kernel"] = np.ones(3)


H5 = [external_link, external_group, external_model, soft_link, virtual, external_storage, compressed, never_written]
H5 += [huge_chunk, strings, no_shape, fields, cycle, one_array_a_thousand_times, one_name_twice]


@pytest.mark.parametrize("write", H5)
def test_hdf5_that_is_more_than_plain_arrays_is_refused(tmp_path, write):
    with h5py.File(tmp_path / "secret", "w") as file:
        file["w"] = np.ones(16, np.float32)
    with h5py.File(tmp_path / "w.h5", "w") as file:
        write(file, tmp_path / "secret")
    message = refused(tmp_path / "w.h5")
    assert "secret" not in message.replace(str(tmp_path), "")


def flax_array(*parts) -> bytes:
    return msgpack.packb({"params": msgpack.ExtType(1, msgpack.packb(parts))})


@pytest.mark.parametrize(
    "content",
    [
        b"\x81\xa1a\xdd\xff\xff\xff\xff",  # a list of 4 billion
        b"\x81\xa1a" + 500 * b"\xdd\x00\x0f\x42\x40" + bytes(10**6),  # lists of a million, one in the other
        b"\x81\xa1a" * 2000,
        b"\xdf\xff\xff\xff\xff",
        b"\x81\xa1a\xc6\xff\xff\xff\xff",
        flax_array((10**6, 10**6), "float32", bytes(64)),
        flax_array((16,), "O", bytes(128)),
        flax_array((16,), "os.system", bytes(64)),
        flax_array((-1, -1), "float32", bytes(64)),
        msgpack.packb({"a": msgpack.ExtType(1, 500 * b"\xdd\x00\x0f\x42\x40" + bytes(10**6))}),
        msgpack.packb({"a": msgpack.ExtType(77, b"abc")}),
        msgpack.packb({"a": "text"}),
        serialization.msgpack_serialize({"a": "//GDAPlaceholder:a"}),  # an array in another folder
    ],
)
def test_a_flax_file_that_lies_is_refused(tmp_path, content):
    (tmp_path / "checkpoint_3").write_bytes(content)
    assert refused(tmp_path / "checkpoint_3")


@pytest.fixture
def orbax_folder(tmp_path):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "c", {"a": jnp.ones(16)})
    assert read_arrays(tmp_path / "c").arrays["a"].tolist() == [1] * 16
    return tmp_path / "c"


@pytest.mark.parametrize("key", ["../../secret", "..", "a/b"])
def test_names_that_lead_out_of_an_orbax_folder_are_refused(orbax_folder, key):
    text = (orbax_folder / "_METADATA").read_text()
    (orbax_folder / "_METADATA").write_text(text.replace('"key": "a"', json.dumps({"key": key})[1:-1]))
    assert "nothing was read" in refused(orbax_folder)


def test_links_out_of_an_orbax_folder_are_refused(orbax_folder):
    (orbax_folder / "manifest.ocdbt").rename(orbax_folder.parent / "elsewhere")
    (orbax_folder / "manifest.ocdbt").symlink_to(orbax_folder.parent / "elsewhere")
    assert "the link 'manifest.ocdbt'" in refused(orbax_folder)


def test_an_orbax_folder_out_of_proportion_is_refused(tmp_path):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "c", {"a": jnp.zeros(10**7)})
    assert "expected arrays of at most" in refused(tmp_path / "c")
