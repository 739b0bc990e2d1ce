"""What `etude verify` shows users, asserted; and that these checks can fail."""

import json

import numpy as np
import pytest
import torch

from etude import catalog
from etude.errors import UsageError
from etude.verify import checks, detection, golden, language
from etude.weights import load_weights

SIZES = [size for row in catalog.SYSTEMS for size in row.sizes or (row.name,)]


@pytest.mark.parity
@pytest.mark.parametrize("size", SIZES)
def test_checks_pass(size):
    found = checks.run([size])
    assert found and {check.system for check in found} == {size}
    for check in found:
        assert check.ok, f"{check.quantity} differs from {check.reference} by {check.error:.2g} > {check.bound:.0e}"
    assert json.loads(json.dumps([check.json() for check in found]))[0]["ok"] is True


def test_every_golden_file_is_used():
    # tests/data/test_augment.py, checks.deformable_checks, checks.realesrgan_checks
    elsewhere = {"augment", "deform_conv2d", "realesrgan", *language.FILES, *detection.FILES}
    assert {path.stem for path in golden.FOLDER.glob("*.npz")} == set(checks.GOLDEN) | elsewhere


def test_a_system_means_all_its_sizes():
    assert {check.system for check in checks.run(["mobilenet"])} == {"mobilenet_v1", "mobilenet_v2"}
    with pytest.raises(UsageError, match="unknown system 'resnet51'") as caught:
        checks.run(["resnet51"])
    assert "resnet" in caught.value.hint


@pytest.fixture(scope="module")
def mobilenet():
    """The golden file, its model with the golden weights, and the outputs."""
    expected = golden.load("mobilenet_v2")
    model = load_weights(catalog.model("mobilenet_v2"), expected.weights, source="torchvision").eval()
    with torch.no_grad():
        return expected, model, model(expected.image)


@pytest.mark.parity
def test_names_and_shapes_are_the_references(mobilenet):
    expected, model, _ = mobilenet
    assert {name: list(tensor.shape) for name, tensor in model.state_dict().items()} == expected.meta["shapes"]
    assert sum(p.numel() for p in model.parameters()) == expected.meta["n_params"]


@pytest.mark.parametrize("wrong", ["digest", "norm", "shape", "nan"])
def test_a_wrong_output_fails(mobilenet, wrong):
    expected, _, logits = mobilenet
    if wrong == "digest":  # the norm stays
        logits = logits.flip(1)
    elif wrong == "norm":
        logits = logits * (1 + 1e-4)
    elif wrong == "shape":
        logits = logits[:1]
    else:
        logits = logits * float("nan")
    failed = [
        checks.Check("x", "y", name, error, golden.BOUND) for name, error in expected.errors("logits", logits).items()
    ]
    assert not all(check.ok for check in failed)
    json.dumps([check.json() for check in failed], allow_nan=False)


@pytest.mark.parity
def test_one_wrong_weight_fails(mobilenet):
    expected, _, _ = mobilenet
    weights = expected.weights
    weights["features.3.conv.1.0.weight"] = weights["features.3.conv.1.0.weight"].flip(2)
    other = load_weights(catalog.model("mobilenet_v2"), weights, source="torchvision").eval()
    with torch.no_grad():
        assert expected.errors("logits", other(expected.image))["logits digest"] > 100 * golden.BOUND


def test_weights_follow_from_seed_name_and_shape():
    """The rules of the golden files, one value each computed here anew."""
    seeded = np.random.Generator(np.random.PCG64([20, 478667881]))  # 478667881 is the CRC-32 of "layer.weight"
    expected = seeded.standard_normal((2, 3, 4)) / np.sqrt(12)
    np.testing.assert_array_equal(golden.weight(20, "layer.weight", (2, 3, 4)), expected.astype(np.float32))
    for name in ("bn.running_var", "bn.weight", "norm.gamma"):
        values = golden.weight(20, name, (1000,))
        assert 0.5 <= values.min() < 0.51 and 1.49 < values.max() <= 1.5
    assert golden.weight(20, "bn.bias", (10_000,)).std() == pytest.approx(0.1, rel=0.03)
    assert not np.array_equal(golden.weight(20, "a", (3,)), golden.weight(21, "a", (3,)))
