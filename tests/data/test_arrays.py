import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from openedm.data import Arrays, Source
from openedm.ground.choices import from_config, to_config

PIXELS = (np.arange(5 * 3 * 6 * 7) % 256).astype(np.uint8).reshape(5, 3, 6, 7)


def save(folder, x, **others) -> str:
    if others:
        np.savez(folder / "data.npz", x=x, **others)
        return str(folder / "data.npz")
    np.save(folder / "data.npy", x)
    return str(folder / "data.npy")


def everything(source):
    dataset = source.load()
    return dataset.fetch(range(len(dataset)))


@pytest.mark.parametrize("x", [PIXELS, PIXELS.transpose(0, 2, 3, 1)], ids=["channels first", "channels last"])
def test_bytes_are_images_wherever_their_channels_are(tmp_path, x):
    source = Arrays(save(tmp_path, x))
    assert torch.equal(everything(source)[0], torch.from_numpy(PIXELS) / 127.5 - 1)
    assert source.load().describe() == "5 images of 3×6×7 without labels"


def test_bytes_without_channels_are_grey(tmp_path):
    source = Arrays(save(tmp_path, PIXELS[:, 0]))
    assert source.load().event_shape == (1, 6, 7)
    assert torch.equal(everything(source)[0][:, 0], torch.from_numpy(PIXELS[:, 0]) / 127.5 - 1)


def test_channels_on_either_side_are_asked_about(tmp_path):
    x = np.arange(2 * 3 * 5 * 4, dtype=np.uint8).reshape(2, 3, 5, 4)
    path = save(tmp_path, x)
    with pytest.raises(ValueError, match=r"data.npy: \(2, 3, 5, 4\) has channels before or after .* layout="):
        Arrays(path).load()
    assert Arrays(path, layout="NCHW").load().event_shape == (3, 5, 4)
    last = everything(Arrays(path, layout="NHWC"))[0]
    assert torch.equal(last, (torch.from_numpy(x) / 127.5 - 1).permute(0, 3, 1, 2))


@pytest.mark.filterwarnings("ignore:x has values:UserWarning")
@settings(deadline=None, max_examples=30)
@given(
    x=hnp.arrays(
        st.sampled_from([np.float16, np.float32, np.dtype(">f8")]),
        hnp.array_shapes(min_dims=2, max_dims=5, max_side=4),
        elements=st.floats(-100, 100, width=16),
    )
)
def test_floating_point_is_taken_as_it_is(tmp_path_factory, x):
    found = everything(Arrays(save(tmp_path_factory.mktemp("a"), x)))[0]
    assert found.dtype == torch.float32
    assert np.array_equal(found.numpy(), x.astype(np.float32))


def test_floating_point_images_with_channels_last_can_be_turned(tmp_path):
    x = PIXELS.transpose(0, 2, 3, 1) / np.float32(127.5) - 1
    assert np.array_equal(everything(Arrays(save(tmp_path, x), layout="NHWC"))[0].numpy(), x.transpose(0, 3, 1, 2))


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint16, np.uint64, np.uint8])
def test_labels_of_any_integer_type_come_from_the_archive(tmp_path, dtype):
    path = save(tmp_path, np.zeros((4, 2)), labels=np.array([0, 3, 1, 1], dtype=dtype))
    assert everything(Arrays(path))[1].tolist() == [0, 2, 1, 1]
    assert Arrays(path).load().describe() == "4 vectors of 2 in 3 classes (labels 0 … 3, renumbered 0 … 2)"


def test_data_and_labels_can_be_named(tmp_path):
    y = np.array([1, 0])
    path = save(tmp_path, np.zeros((2, 2)), z=np.ones((2, 3)), kinds=y)
    x, labels = everything(Arrays(path, key="z", labels_key="kinds"))
    assert x.tolist() == [[1, 1, 1]] * 2
    assert labels.tolist() == [1, 0]
    assert everything(Arrays(path, key="z"))[1] is None


@pytest.mark.parametrize(
    ("x", "others", "arguments", "message"),
    [
        (np.zeros((3, 2)), {"y": np.zeros(3)}, {}, r"key must be one of \['x', 'y'\].*data.npz.*give the name"),
        (np.zeros((3, 2)), {"y": np.zeros(3)}, {"key": "q"}, r"key must be one of \['x', 'y'\].* got 'q'"),
        (np.zeros((3, 2)), {"y": np.zeros(3)}, {"labels_key": "q"}, "labels_key must be one of .* got 'q'"),
        (np.zeros((3, 2)), {}, {"labels_key": "labels"}, "labels_key must be None for a .npy file, such as .*data.npy"),
        (
            np.zeros((3, 2)),
            {"labels": np.zeros(3)},
            {},
            "data.npz: labels must be integers or one-hot rows, got torch.float64",
        ),
        (
            np.zeros((3, 2)),
            {"labels": np.array([0, 1])},
            {},
            r"data.npz: labels must have shape \(3,\), one per sample, got \(2,\)",
        ),
        (np.zeros((3, 2), dtype=np.int32), {}, {}, "data.npy: x must be floating point, uint8, .* got torch.int32"),
        (
            np.zeros((3, 2), dtype=np.uint8),
            {},
            {},
            r"data.npy: images must have shape .* got \(2,\) of uint8; give range=\(0, 255\)",
        ),
        (np.zeros((3, 2, 5, 6), dtype=np.uint8), {}, {}, r"data.npy: \(3, 2, 5, 6\) has channels before or after"),
        (
            np.zeros((3, 2)),
            {},
            {"layout": "NHWC"},
            r"data.npy: layout='NHWC' requires an array with four axes, got shape \(3, 2\)",
        ),
        (np.zeros(3), {}, {}, r"data.npy: x must be \(samples"),
        (np.zeros((0, 3)), {}, {}, "data.npy: x must be .* at least one"),
        (np.array([[0.0], [1.0], [np.nan]]), {}, {}, r"data.npy: x must be finite, but x\[2\] has NaN"),
        (np.array([[0.0, 1], [-np.inf, 0]]), {}, {}, r"data.npy: x must be finite, but x\[1\] has NaN or infinity"),
        (np.array([[None]]), {}, {}, "data.npy' cannot be read: .*Python objects"),
    ],
)
def test_an_array_that_does_not_fit_is_refused_with_the_files_name(tmp_path, x, others, arguments, message):
    path = save(tmp_path, x, **others)
    with pytest.raises(ValueError, match=message):
        Arrays(path, **arguments).load()


@pytest.mark.parametrize("content", [None, b"", b"text", b"PK\x03\x04 cut short"])
def test_a_file_that_cannot_be_read_is_named(tmp_path, content):
    path = tmp_path / "data.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"path must be a .npy or .npz file, '.*data.npz' cannot be read"):
        Arrays(str(path)).load()


def test_an_archive_with_a_damaged_member_is_named(tmp_path):
    path = save(tmp_path, np.zeros((50, 4)), labels=np.zeros(50, dtype=int))
    content = bytearray((tmp_path / "data.npz").read_bytes())
    content[300] ^= 0xFF
    (tmp_path / "data.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"data.npz' cannot be read: .*CRC"):
        Arrays(path).load()


def test_the_source_survives_its_plain_form():
    source = Arrays("data.npz", key="z", layout="NHWC")
    assert from_config(Source, to_config(source)) == source


def test_the_labels_of_samples_keep_the_numbers_of_the_model_and_others_those_of_num_classes(tmp_path):
    x, labels = np.zeros((3, 1, 5, 5), np.uint8), np.array([7, 9, 7])
    np.savez(tmp_path / "drawn.npz", samples=x, seeds=np.arange(3), labels=labels)
    drawn = Arrays(str(tmp_path / "drawn.npz"), key="samples").load()
    assert (drawn.num_classes, drawn.class_names, drawn.fetch([0, 1])[1].tolist()) == (10, None, [7, 9])
    np.savez(tmp_path / "own.npz", x=x, labels=labels)
    own = Arrays(str(tmp_path / "own.npz"), num_classes=12).load()
    assert (own.num_classes, own.class_names, own.fetch([0, 1])[1].tolist()) == (12, None, [7, 9])
    with pytest.raises(ValueError, match="num_classes must be > the largest label 9, got 9"):
        Arrays(str(tmp_path / "own.npz"), num_classes=9).load()
