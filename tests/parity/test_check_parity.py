"""scripts/check_parity.py on folders that the twin fills: agreement, and every way to lack it."""

import json
import os
import subprocess
import sys
from operator import attrgetter
from pathlib import Path

import numpy as np
import pytest
import torch

import twin as torch_twin
from scripts import check_parity
from snr_jax.core.errors import UserError
from snr_jax.parity.compare import Row, error
from snr_jax.parity.golden import draw_network, draw_tensor, find_salt, generator
from snr_jax.parity.training import configure, parse_run

SALT, CLASSES, SIZE = "another salt", 7, (50, 81)
NETWORK = {"num_classes": CLASSES, "stage_sizes": (1, 2, 1, 1), "width": 4}
VARIANTS = {"baseline": "none", "snr": "snr"}
RUNS = {  # name: (kind, options of the twin's step)
    "dg_release": ("snr", {"repeated_updates": True, "train_snr": False}),
    "uda_iw_multi_plain": ("baseline", {
        "target_loss": torch_twin.iw_maxsquare, "multi": True, "lambda_seg": 0.1,
        "lambda_target": 0.1, "threshold": 0.3}),
}
SHOWN = ("conv1.weight", "layer2.0.downsample.0.weight", "layer6.conv2d_list.0.bias",
         "bn1.running_mean", "layer4.0.bn3.running_var")
STATISTICS = ("bn1.running_mean", "layer2.1.bn2.running_var", "layer4.0.bn3.running_mean")
MARGIN = (16, 32)


def rng(name):
    return generator(name, SALT)


def image(name, height, width):
    values = 50 * rng(name).standard_normal((1, 3, height, width))
    return torch.from_numpy(values.astype(np.float32)).double()


def label(name, *shape):
    """With the folder's -1 where ignored."""
    y = rng(name).integers(0, CLASSES, shape)
    y[rng(f"{name}/ignore").random(shape) < 0.1] = -1
    return y


def for_twin(labels):
    return torch.from_numpy(np.where(labels < 0, torch_twin.IGNORE, labels))


def network(kind):
    twin = torch_twin.DeepLab(**NETWORK, norm_restitution=VARIANTS[kind]).double()
    twin.load_state_dict({
        name: torch.from_numpy(draw_tensor(name, tuple(value.shape), SALT))
        for name, value in twin.state_dict().items()
    })
    return twin


def shapes_of(kind):
    return {name: list(value.shape) for name, value in network(kind).state_dict().items()}


def forward_arrays():
    arrays = {}
    for kind in VARIANTS:
        twin = network(kind)
        for mode in ("eval", "train"):
            with torch.no_grad():
                outputs = twin.train(mode == "train")(image("eval_input", *SIZE))
            for head, logits in zip(("main", "aux"), outputs, strict=True):
                arrays[f"{kind}/{mode}/{head}"] = logits.numpy().astype(np.float32)
        state = twin.state_dict()
        arrays |= {f"{kind}/train/{name}": state[name].numpy() for name in STATISTICS}
    return arrays


def loss_arrays():
    shape = (2, CLASSES, 9, 8)
    arrays = {name: (2 * rng(name).standard_normal(shape)).astype(np.float32)
              for name in ("logits", "logits_aux")}
    labels = label("labels", 2, 9, 8)
    arrays["labels"] = labels.astype(np.int8)

    functions = {
        "cross_entropy": lambda x, y: torch_twin.cross_entropy(x, for_twin(labels)),
        "hard_threshold_0.4": lambda x, y: torch_twin.hard(x, 0.4),
        "self_guidance_aux_threshold_0.4": lambda x, y: torch_twin.guidance(x, y, 0.4),
    }
    for name in ("maxsquare", "iw_maxsquare", "entropy", "iw_entropy"):
        functions[name] = lambda x, y, f=torch_twin.TARGET_LOSSES[name]: f(x)
    for name, function in functions.items():
        count = 1 if name.startswith("iw_") else 2
        heads = [torch.from_numpy(arrays[head][:count]).double().requires_grad_()
                 for head in ("logits", "logits_aux")]
        value = function(*heads)
        main, aux = torch.autograd.grad(value, heads, allow_unused=True, materialize_grads=True)
        arrays |= {f"{name}/value": value.detach().numpy(), f"{name}/grad": main.numpy()}
        if name.startswith("self_guidance"):
            arrays[f"{name}/grad_aux"] = aux.numpy()
    return arrays


def metric_arrays():
    arrays = {}
    for kind, num_classes, absent in (("c7", 7, None), ("c7_absent", 7, 3), ("c4", 4, None)):
        gt = rng(f"{kind}/gt").integers(-1, num_classes, (2, 13, 11))
        pred = rng(f"{kind}/pred").integers(0, num_classes, gt.shape)
        if absent is not None:
            gt[gt == absent] = -1
            pred[pred == absent] = 0
        confusion = torch_twin.confusion_matrix(gt, pred, num_classes)
        values = {"gt": gt.astype(np.int8), "pred": pred.astype(np.int8), "confusion": confusion,
                  **torch_twin.metrics(confusion)}
        arrays |= {f"{kind}/{name}": value for name, value in values.items()}
    return arrays


def training_arrays():
    arrays = {}
    for name, (kind, options) in RUNS.items():
        twin, velocities = network(kind), {}
        before = {key: value.clone() for key, value in twin.state_dict().items()}
        for i in range(3):
            labels = for_twin(label(f"source_labels/{i}", 1, *SIZE))
            inputs = [image(f"source/{i}", *SIZE), labels]
            step = torch_twin.source_step
            if name.startswith("uda"):
                size = (n - less for n, less in zip(SIZE, MARGIN, strict=True))
                inputs.append(image(f"target/{i}", *size))
                step = torch_twin.adaptation_step
            rate = torch_twin.poly(2.5e-4, i, 100)
            terms = step(twin, velocities, *inputs, rate=rate, **options)
            arrays |= {f"{name}/step{i}/{term}": v.numpy() for term, v in terms.items()}
        after = twin.state_dict()
        for key, value in after.items():
            if "num_batches" not in key:
                change = value.double() - before[key].double()
                arrays[f"{name}/delta_norm/{key}"] = change.norm().numpy()
        arrays |= {f"{name}/after/{key}": after[key].flatten()[:512].numpy() for key in SHOWN}
    return arrays


@pytest.fixture(scope="module")
def golden(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("golden")
    for kind in VARIANTS:
        (folder / f"shapes_{kind}.json").write_text(json.dumps(shapes_of(kind)))
    for name, make in (("forward", forward_arrays), ("losses", loss_arrays),
                       ("metrics", metric_arrays), ("training", training_arrays)):
        np.savez(folder / f"{name}.npz", **make())
    return folder


@pytest.fixture
def changed(golden, tmp_path):
    """change(file, {key: new value}) → a folder where nothing else differs."""

    def change(file: str, values: dict[str, np.ndarray]) -> Path:
        for path in golden.iterdir():
            (tmp_path / path.name).write_bytes(path.read_bytes())
        with np.load(golden / file) as arrays:
            np.savez(tmp_path / file, **{**arrays, **values})
        return tmp_path

    return change


def check(folder, *options, capsys):
    """(exit code, what it printed) in this process."""
    code = check_parity.main(["check_parity", "--golden", str(folder), "--salt", SALT, *options])
    printed = capsys.readouterr()
    return code, printed.out + printed.err


def array(folder, file, key):
    with np.load(folder / file) as arrays:
        return arrays[key]


def test_passes(golden):
    """All of it, as a user runs it."""
    root = Path(check_parity.__file__).parent.parent
    command = [sys.executable, "scripts/check_parity.py", "--golden", golden, "--salt", SALT]
    # Compiling is most of the time; unoptimised code compiles twice as fast.
    environment = {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    result = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    lines = result.stdout.splitlines()
    rows = [line for line in lines if line.endswith("  pass")]
    assert f"{len(rows)} of {len(rows)} rows pass" in lines[-1]
    assert "FAIL" not in result.stdout
    for quantity in ("losses/hard_threshold_0.4/grad", "metrics/c7_absent/scores",
                     "forward/snr/train/running statistics", "training/dg_release/step2/losses",
                     "training/uda_iw_multi_plain/values of 5 tensors"):
        assert any(row.startswith(quantity) for row in rows)
    compared = sum(int(row.split()[-4]) for row in rows)
    held = sum(len(np.load(path).files) for path in golden.glob("*.npz"))
    inputs = 3 + 2 * 3  # logits, logits_aux, labels; gt and pred of three sets
    assert compared == held - inputs


@pytest.mark.parametrize(("file", "key", "row"), [
    ("losses.npz", "entropy/grad", "losses/entropy/grad"),
    ("losses.npz", "iw_maxsquare/value", "losses/iw_maxsquare/value"),
    ("metrics.npz", "c4/confusion", "metrics/c4/confusion"),
    ("metrics.npz", "c7_absent/iou", "metrics/c7_absent/scores"),
])
def test_one_wrong_number(changed, golden, capsys, file, key, row):
    value = array(golden, file, key).copy()
    value.flat[0] += 1 if value.dtype.kind == "i" else 3e-6 * np.nanmax(np.abs(value))
    folder = changed(file, {key: value})
    code, printed = check(folder, "--only", "losses,metrics", capsys=capsys)
    failed = [line for line in printed.splitlines() if "FAIL" in line]
    assert code == 1
    assert len(failed) == 1
    assert failed[0].startswith(row) and failed[0].endswith(key)


def test_nan_and_shape(golden):
    good = np.array([1.0, np.nan])
    assert error(good, good) == 0
    assert error(good, np.array([1.0, 2.0])) == np.inf
    assert error(good, good[:1]) == np.inf
    assert error(np.array([1e-9]), np.array([0.0])) == np.inf
    assert not Row("of a NaN", {"key": np.nan}, 1.0).passed


def test_unknown_quantity_fails(changed, capsys):
    folder = changed("losses.npz", {"focal/value": np.float64(1)})
    code, printed = check(folder, "--only", "losses", capsys=capsys)
    assert code == 1
    assert "losses/not recognised" in printed and "focal/value" in printed
    assert "not checked: metrics.npz" in printed


@pytest.fixture
def asked(monkeypatch) -> dict:
    """What the command asks of the comparison of trainings, which is not done."""
    held = {}

    def compare_training(arrays, networks, salt, size, base):
        held.update(size=size, base=base)
        yield Row("training", dict.fromkeys(arrays, 0.0), 1.0)

    monkeypatch.setattr(check_parity, "compare_training", compare_training)
    return held


@pytest.mark.parametrize("flag", check_parity.SETTINGS)
def test_settings_of_the_training_reach_its_configuration(golden, capsys, asked, flag):
    key, default = check_parity.SETTINGS[flag]
    assert check(golden, "--only", "training", capsys=capsys)[0] == 0
    assert attrgetter(key)(asked["base"]) == default
    value = 7 if isinstance(default, int) else 0.625
    assert check(golden, "--only", "training", f"--{flag}", str(value), capsys=capsys)[0] == 0
    assert attrgetter(key)(asked["base"]) == value


def test_size_of_the_images(golden, capsys, asked):
    assert check(golden, "--only", "training", capsys=capsys)[0] == 0
    assert asked["size"] == SIZE
    assert check(golden, "--only", "training", "--size", "70,90", capsys=capsys)[0] == 0
    assert asked["size"] == (70, 90)
    code, printed = check(golden, "--only", "training", "--size", "70", capsys=capsys)
    assert code == 2 and "--size is 70; expected HEIGHT,WIDTH" in printed
    code, printed = check(golden, "--only", "training,speed", capsys=capsys)
    assert code == 2 and "training,speed" in printed and "expected some of" in printed


def test_atrous(golden, capsys, monkeypatch):
    network = draw_network(golden, "snr", SALT, "space_to_batch")
    assert network.model.atrous == "space_to_batch"
    config = configure(check_parity.default.get_config("release"), parse_run("dg_plain"), network)
    assert config.model.atrous == "space_to_batch"
    assert config.num_classes == CLASSES and config.model.stage_sizes == (1, 2, 1, 1)

    def draw(folder, kind, salt, atrous):
        raise UserError(f"drawn in the form {atrous}")

    monkeypatch.setattr(check_parity, "draw_network", draw)
    options = ("--only", "forward", "--atrous", "space_to_batch")
    assert "drawn in the form space_to_batch" in check(golden, *options, capsys=capsys)[1]
    assert "drawn in the form native" in check(golden, *options[:2], capsys=capsys)[1]


def test_other_salt(golden, tmp_path, capsys):
    """The likely cause is named."""
    (tmp_path / "shapes_baseline.json").write_bytes((golden / "shapes_baseline.json").read_bytes())
    keys = ("baseline/eval/main", "baseline/eval/aux")
    np.savez(tmp_path / "forward.npz", **{k: array(golden, "forward.npz", k) for k in keys})
    code, printed = check(tmp_path, "--only", "forward", "--salt", "wrong", capsys=capsys)
    assert code == 1
    assert "another salt than 'wrong'" in printed
    code, printed = check(tmp_path, "--only", "forward", capsys=capsys)
    assert code == 0
    assert "No output of a network agrees" not in printed


def test_cannot_compare(golden, changed, tmp_path, capsys):
    code, printed = check(tmp_path / "none", capsys=capsys)
    assert code == 2 and "no such folder" in printed
    code, printed = check(tmp_path, capsys=capsys)
    assert code == 2 and "losses.npz: no such file" in printed
    (tmp_path / "losses.npz").write_bytes(b"PK")
    code, printed = check(tmp_path, capsys=capsys)
    assert code == 2 and "not a readable npz file" in printed
    code, printed = check(golden, "--only", "forward", "--num_classes", "19", capsys=capsys)
    assert code == 2 and f"{CLASSES} classes" in printed
    folder = changed("forward.npz", {})
    (folder / "shapes_baseline.json").write_text("[1]")
    code, printed = check(folder, "--only", "forward", capsys=capsys)
    assert code == 2 and "shapes_baseline.json" in printed


def test_salt_of_the_readme(tmp_path):
    assert find_salt(tmp_path) is None
    (tmp_path / "README.md").write_text("`f(shapes, salt)` with `x` and salt `2024-b` gives")
    assert find_salt(tmp_path) == "2024-b"
