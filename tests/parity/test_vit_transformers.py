"""The backbone against Dinov2Model of the transformers package, through its files, in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from snr_jax.core.models.dinov2 import DINOv2
from snr_jax.core.models.light_head import ViTSegmenter
from snr_jax.core.state import initial_variables
from snr_jax.weights import dinov2_names
from snr_jax.weights.torch_files import read_torch_file
from tests.core.tiny import quick_jit
from tests.parity.pair import assert_close, to_torch

transformers = pytest.importorskip("transformers")
SHAPE = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 70,
         "patch_size": 14}
KINDS = {0: ("Dinov2", (70, 70)), 4: ("Dinov2WithRegisters", (56, 98))}


def make_model(registers: int):
    """Of values at which all matters."""
    name, _ = KINDS[registers]
    options = SHAPE | ({"num_register_tokens": registers} if registers else {})
    config = getattr(transformers, f"{name}Config")(**options)
    model = getattr(transformers, f"{name}Model")(config).eval()
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=random))
    return model


@pytest.mark.parametrize("registers", KINDS)
def test_features(registers, tmp_path):
    """Without registers at the positions' own size: at others transformers resizes by another rule
    than DINOv2."""
    theirs, size = make_model(registers), KINDS[registers][1]
    theirs.save_pretrained(tmp_path)
    raw, _, _ = read_torch_file(str(tmp_path / "model.safetensors"))
    found = dinov2_names.read_names(raw)
    shape = dinov2_names.infer_architecture(found.tensors, 4) | {"num_classes": 3}
    initial = initial_variables(ViTSegmenter(**shape), 0)
    variables, account = dinov2_names.fill(initial, found.tensors, found.unused)
    assert not account.unused
    assert all(name.startswith(("upscale", "out")) for name in account.missing)

    random = np.random.default_rng(0)
    image = random.normal(size=(2, *size, 3)).astype(np.float32)
    mask = random.random((2, size[0] // 14, size[1] // 14)) < 0.4
    shape.pop("num_classes")
    tokens = quick_jit(DINOv2(**shape, dtype=jnp.float32).apply)(
        {"params": variables["params"]["encoder"]}, image, mask)
    with torch.no_grad():
        expected = theirs(to_torch(image), bool_masked_pos=torch.from_numpy(mask).flatten(1))
    last = expected.last_hidden_state.numpy()
    assert tokens.patches.dtype == jnp.float32
    patches = tokens.patches.reshape(2, mask[0].size, -1)
    assert_close({"cls": tokens.cls, "patches": patches},
                 {"cls": last[:, 0], "patches": last[:, 1 + registers:]}, 1e-5)

    back = jax.tree.map(np.asarray, variables)
    save_file(dinov2_names.to_transformers(back), tmp_path / "model.safetensors", {"format": "pt"})
    again = type(theirs).from_pretrained(tmp_path)
    for (name, old), new in zip(theirs.state_dict().items(), again.state_dict().values(),
                                strict=True):
        assert torch.equal(old, new), name
