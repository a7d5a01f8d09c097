"""Which of the equal forms a network is computed in, where it runs."""

import jax
import jax.numpy as jnp
import pytest

from snr_jax.core.errors import UserError
from snr_jax.core.models.create import create_model

FORMS = {  # backend → what was found to be faster there (docs/performance.md)
    "cpu": {"dtype": jnp.float32, "atrous": "native", "pointwise": "product",
            "bn_sums": "xla", "affine_snr": False},
    "gpu": {"dtype": jnp.bfloat16, "atrous": "weight_gradient", "pointwise": "convolution",
            "bn_sums": "pallas", "affine_snr": True},
    # The kernel of the sums is written for GPUs.
    "tpu": {"dtype": jnp.bfloat16, "atrous": "weight_gradient", "pointwise": "convolution",
            "bn_sums": "xla", "affine_snr": True},
}


@pytest.mark.parametrize("backend", FORMS)
def test_the_forms_of_a_backend(backend, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    model = create_model(norm_restitution="in")
    assert {name: getattr(model, name) for name in FORMS[backend]} == FORMS[backend]
    assert model.norm_restitution == "in"


def test_what_is_asked_for_counts_on_every_backend(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    model = create_model(dtype="float32", atrous="native")
    assert model.dtype == jnp.float32 and model.atrous == "native"


@pytest.mark.parametrize("name, value", [
    ("norm_restitution", "batch"), ("head_branches", 3), ("stride_in", "conv3"), ("exposure", 2),
])
def test_an_architecture_that_does_not_exist(name, value):
    with pytest.raises(UserError, match=rf"model\.{name} is {value!r}; expected one of"):
        create_model(**{name: value})
