"""check_parity.py on a folder of the transformer's numbers, made by the PyTorch twin."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from scripts import check_parity
from snr_jax.parity.golden import generator
from snr_jax.parity.vit import draw_weight
from twin.vit import Segmenter

SALT, CLASSES, BATCH, SIZE = "toy", 4, 3, 32  # inside it is 28x28: two patches
SHAPE = {"num_classes": CLASSES, "width": 16, "depth": 1, "heads": 2, "grid": 2}


def rng(name):
    return generator(name, SALT)


def load(module):
    """The module with weights drawn from their names, and its shapes."""
    shapes = {name: list(x.shape) for name, x in module.state_dict().items()}
    module.load_state_dict({name: torch.from_numpy(draw_weight(name, tuple(shape), SALT))
                            for name, shape in shapes.items()})
    return module.double(), shapes


def tensor(array):
    return torch.from_numpy(np.asarray(array)).double()


def token_arrays(folder):
    arrays = {}
    for kind, registers in (("plain", 0), ("registers", 4)):
        vit, shapes = load(Segmenter(**SHAPE, registers=registers).encoder)
        (folder / f"shapes_vit_{kind}.json").write_text(json.dumps(shapes))
        name = "28x42"
        image = rng(f"vit_input/{name}").standard_normal((1, 3, 28, 42)).astype(np.float32)
        mask = torch.from_numpy(rng("vit_mask").random((1, 6)) < 0.4)
        for title, hidden in (("patch_tokens", None), ("masked", mask)):
            with torch.no_grad():
                tokens = vit(tensor(image), hidden).numpy().astype(np.float32)
            arrays[f"vit/{kind}/{name}/{title}"] = tokens[:, 1 + registers:]
            if hidden is None:
                arrays[f"vit/{kind}/{name}/cls"] = tokens[:, 0]
    return arrays


def segmenter_arrays(folder):
    network, shapes = load(Segmenter(**SHAPE))
    # The published one has a second name of the mask token, which is loaded last.
    shapes["token_masking.mask_token"] = [1, SHAPE["width"]]
    second = draw_weight("token_masking.mask_token", (1, SHAPE["width"]), SALT)
    with torch.no_grad():
        network.encoder.mask_token.copy_(torch.from_numpy(second))
    (folder / "shapes_segmenter.json").write_text(json.dumps(shapes))
    shape = (BATCH, SIZE, SIZE)
    image = tensor(rng("seg_input").standard_normal((BATCH, 3, SIZE, SIZE)).astype(np.float32))
    label = rng("seg_labels").integers(0, CLASSES, shape)
    label[rng("seg_labels/ignore").random(shape) < 0.1] = 255
    label, weight = torch.from_numpy(label), tensor(rng("seg_weight").random(shape).astype("f"))
    mask = torch.from_numpy(rng("seg_token_mask").random((BATCH, 4)) < 0.7)

    def supervised():
        logits = network(image)
        return F.cross_entropy(logits, label, ignore_index=255), logits

    def masked():
        logits = network(image, mask)
        losses = F.cross_entropy(logits, label, ignore_index=255, reduction="none")
        return (losses * weight).mean(), logits

    before = {name: x.detach().clone() for name, x in network.named_parameters()}
    arrays = {"segmenter/eval/logits": network(image).detach().numpy().astype(np.float32)}
    for name, loss in (("supervised", supervised), ("masked", masked)):
        network.zero_grad()
        value, logits = loss()
        value.backward()
        arrays |= {f"segmenter/{name}/loss": value.detach().numpy(),
                   f"segmenter/{name}/logits": logits.detach().numpy().astype(np.float32)}
        for key, x in network.named_parameters():
            gradient = torch.zeros_like(x) if x.grad is None else x.grad
            arrays[f"segmenter/{name}/grad_norm/{key}"] = gradient.norm().numpy()
            arrays[f"segmenter/{name}/grad/{key}"] = gradient.flatten()[:64].numpy()
    return arrays | training_arrays(network, before, (supervised, masked))


def training_arrays(network, before, losses):
    parts = {"decoder": [*network.upscale.parameters(), *network.out.parameters()],
             "encoder": list(network.encoder.parameters())}
    optimizer = torch.optim.AdamW([{"params": part} for part in parts.values()], weight_decay=0.01)
    teacher, arrays = {name: x.clone() for name, x in before.items()}, {}
    for i in range(2):
        rate = 5e-5 * np.sqrt(BATCH) * (1e-3, 1e-3 + 0.999 / 3)[i]
        for group, share in zip(optimizer.param_groups, (1, 0.1), strict=True):
            group["lr"] = share * rate
        optimizer.zero_grad()
        values = [loss()[0] for loss in losses]
        sum(values).backward()
        optimizer.step()
        keep = min(1 - 1 / (i + 2), 0.999)
        arrays |= {f"training/rate/{i}": np.array([rate, 0.1 * rate]),
                   f"training/loss/{i}": np.array([x.item() for x in values])}
        for name, x in network.named_parameters():
            teacher[name] = keep * teacher[name] + (1 - keep) * x.detach()
    for name, x in network.named_parameters():
        arrays[f"training/delta_norm/{name}"] = (x.detach() - before[name]).norm().numpy()
        arrays[f"training/ema_delta_norm/{name}"] = (teacher[name] - before[name]).norm().numpy()
        arrays[f"training/after/{name}"] = x.detach().flatten()[:256].numpy()
    return arrays


@pytest.fixture(scope="module")
def golden(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("golden_vit")
    np.savez(folder / "vit.npz", **token_arrays(folder), **segmenter_arrays(folder))
    (folder / "README.md").write_text(f'`rng(name) = default_rng(crc32("{SALT}/<name>"))`')
    return folder


def check(folder, capsys):
    """(exit code, what it printed); salt and part are found in the folder."""
    code = check_parity.main(["check_parity", "--golden", str(folder)])
    return code, "".join(capsys.readouterr())


def test_wrong_numbers_are_found_and_no_others(golden, tmp_path, capsys):
    """A little of one array of each kind, and one that nothing here computes; all else passes."""
    for path in golden.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    with np.load(golden / "vit.npz") as file:
        arrays = dict(file)
    name = "encoder.blocks.0.ls1.gamma"
    wrong = {"vit/registers/28x42/masked": 3e-6, "segmenter/masked/logits": 3e-6,
             "segmenter/supervised/loss": 3e-8, f"segmenter/masked/grad/{name}": 3e-8,
             f"training/ema_delta_norm/{name}": 3e-6, "training/rate/1": 3e-8}
    for key, share in wrong.items():
        arrays[key] = arrays[key] + share * np.abs(arrays[key]).max()
    arrays["training/what/else"] = np.zeros(1)
    np.savez(tmp_path / "vit.npz", **arrays)
    code, printed = check(tmp_path, capsys)
    rows = [line for line in printed.splitlines() if "  pass" in line or "FAIL" in line]
    failed = {line.split()[-1] for line in rows if "FAIL" in line}
    assert code == 1 and failed == {*wrong, "training/what/else"}, printed
    assert f"{len(rows) - len(failed)} of {len(rows)} rows pass" in printed and len(rows) == 19
    assert f"{len(arrays)} arrays compared" in printed
    assert f"salt {SALT!r}" in printed


def test_what_cannot_be_compared(golden, tmp_path, capsys):
    np.savez(tmp_path / "vit.npz", **{"segmenter/eval/logits": np.zeros((1, 4, 32, 32))})
    code, printed = check(tmp_path, capsys)
    assert code == 2 and "no array vit/<kind>/<h>x<w>/cls" in printed
    np.savez(tmp_path / "vit.npz", **{"vit/plain/28x42/cls": np.zeros((1, 16))})
    assert "shapes_vit_plain.json: no such file" in check(tmp_path, capsys)[1]
    shapes = json.loads((golden / "shapes_vit_plain.json").read_text())
    (tmp_path / "shapes_vit_plain.json").write_text(json.dumps(shapes | {"odd": [3]}))
    assert "shapes_vit_plain.json: 0 tensors missing, 1 of no known" in check(tmp_path, capsys)[1]
