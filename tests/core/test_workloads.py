"""The steps that are timed and compiled, and the scripts that read and print about them."""

import jax
import numpy as np
import pytest
from jax import profiler

from scripts import bench_step, check_hlo
from snr_jax.core import workloads
from snr_jax.core.workloads import KINDS, create_workload

TINY = {"stage_sizes": (1, 1, 1, 1), "width": 4, "source_size": (33, 49), "target_size": (41, 33),
        "scored_size": (50, 60), "batch_size": 2}


TINY_VIT = {"backbone": "dinov2_b", "width": 16, "depth": 1, "heads": 2, "grid": 3,
            "source_size": (28, 42), "target_size": (28, 42), "scored_size": (30, 50),
            "batch_size": 2}
LOSSES = {"resnet101": {"source": {"loss_source", "loss_restitution"},
                        "adaptation": {"loss_source", "loss_restitution", "loss_target"}},
          "dinov2_b": {"source": {"loss_source"},
                       "adaptation": {"loss_source", "loss_target", "loss_masked", "sure_share"}}}


@pytest.mark.parametrize("tiny", [TINY, TINY_VIT], ids=LOSSES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_workload_is_the_step_that_its_name_says(kind, tiny):
    work = create_workload(kind, **tiny)
    result = jax.eval_shape(work.step, work.state_shapes(), work.batch)
    if kind == "evaluation":
        assert result.shape == (19, 19)
        return
    state, metrics = result
    assert jax.tree.structure(state) == jax.tree.structure(work.state_shapes())
    assert metrics.keys() == LOSSES[tiny.get("backbone", "resnet101")][kind]
    batch = work.random_batch()
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
        k: (v.shape, v.dtype) for k, v in work.batch.items()}
    assert batch["source_label"].max() < 19


def test_the_transformer_adapts_by_three_views_and_a_teacher_with_its_mirror(monkeypatch):
    work = create_workload("adaptation", **TINY_VIT)
    state, passes, attend = work.state_shapes(), [], jax.nn.dot_product_attention

    def counted(*args, **options):  # once a pass: the network has one block
        passes.append(args[0].shape)
        return attend(*args, **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", counted)
    jax.eval_shape(work.step, state, work.batch)
    assert len(passes) == 3 + 2
    assert jax.tree.structure(state.teacher["params"]) == jax.tree.structure(state.params)
    source = create_workload("source", **TINY_VIT).state_shapes()
    assert ["mask_token" in s.opt_state.mu["encoder"] for s in (state, source)] == [True, False]


def test_a_frozen_backbone_stays_and_costs_no_gradient():
    def compiled(frozen):
        work = create_workload("source", **TINY_VIT, frozen=frozen)
        return work, jax.jit(work.step).lower(work.state_shapes(), work.batch).compile()

    (_, whole), (work, head) = compiled(False), compiled(True)
    backward = "transpose(jvp(ViTSegmenter))/"
    assert f"{backward}encoder/" in whole.as_text() and f"{backward}head/" in head.as_text()
    assert f"{backward}encoder/" not in head.as_text()
    assert head.cost_analysis()["flops"] < 0.8 * whole.cost_analysis()["flops"]
    before = work.initial_state()
    after, _ = head(before, work.random_batch())
    same = jax.tree.map(np.array_equal, before.params, after.params)
    assert all(jax.tree.leaves(same["encoder"])) and not any(jax.tree.leaves(same["head"]))


def test_a_workload_runs_the_batch_in_parts():
    def loops(parts):
        work = create_workload("source", **TINY, accumulate_steps=parts)
        program = jax.make_jaxpr(work.step)(work.state_shapes(), work.batch)
        return [e.params["length"] for e in program.eqns if e.primitive.name == "scan"]

    assert loops(1) == [] and loops(2) == [2, 2]


TEXT = """
%fused (p: f32[2,3]) -> s32[4] {
  ROOT %s = s32[4]{0} scatter(%a, %b, %c), to_apply=%add
}

ENTRY %main (p.1: f32[2,3]) -> f32[2,3] {
  %p.1 = f32[2,3]{1,0} parameter(0)
  %loop_add_fusion = (f32[2,3]{1,0}, bf16[4]{0}) fusion(%p.1), kind=kLoop, calls=%fused
  %get-tuple-element.1 = f32[2,3]{1,0} get-tuple-element(%loop_add_fusion), index=0
  %conv.1 = (bf16[5]{0}, u8[0]{0}) custom-call(%p.1, %get-tuple-element.1), \
window={size=7x7 stride=2x2}, custom_call_target="__cudnn$convForward"
  %conv.2 = (bf16[5]{0}, u8[0]{0}) custom-call(%p.1), \
window={size=91x161 pad=2_2x2_2}, custom_call_target="__cudnn$convForward"
  ROOT %copy.1 = f32[2,3]{0,1} copy(%get-tuple-element.1)
}
"""


def test_a_compiled_text_is_counted_by_hand():
    """Bytes: fusion 24 + (24 + 8), the convolutions 24 + 24 + 10 and 24 + 10, the copy 24 + 24."""
    assert [tuple(launch) for launch in check_hlo.launches(TEXT)] == [
        ("fusion: other", 56), ("cudnn$convForward", 58), ("cudnn$convForward", 34), ("copy", 48)]
    counts = check_hlo.count(TEXT, 3 * 2**29)
    assert counts == (1, 1, 4, pytest.approx(196e-9), 1.5)


@pytest.mark.parametrize(("script", "flag", "word"), [
    (check_hlo, "--steps=sources", "source, adaptation, evaluation"),
    (check_hlo, "--target=h900", "h200"),
    (check_hlo, "--accumulate_steps=2", "--batch_size=1"),
    (check_hlo, "--attention=xla", "atrous, pointwise, bn_sums, affine_snr, remat"),
    (bench_step, "--cases=tpu", "gpu, vit, cpu, demo"),
    (bench_step, "--rounds=0", "rounds"),
    (bench_step, "--contestants=fortran", "jax float32, torch float32"),
    (bench_step, "--time_limit=-1", "time_limit"),
])
def test_a_flag_of_no_meaning_is_refused(script, flag, word, capsys):
    assert script.main(["script", flag]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and word in error and error.count("\n") == 1
    script.FLAGS.unparse_flags()
    for name in script.FLAGS:
        script.FLAGS[name].unparse()


def test_the_launches_of_a_gpu_are_read_from_its_streams():
    """Its other lines tell of the same times again, and the host's are none of them."""
    profile = profiler.ProfileData.from_text_proto("""
planes { name: "/host:CPU" lines { name: "Stream #1" events { duration_ps: 9000000000 } } }
planes {
  name: "/device:GPU:0"
  lines { name: "Stream #13(MemcpyD2D,Compute)" events { metadata_id: 1 duration_ps: 1500000000 }
          events { metadata_id: 2 offset_ps: 2000000000 duration_ps: 250000000 } }
  lines { name: "Stream #14" events { metadata_id: 1 duration_ps: 1000000 } }
  lines { name: "XLA Ops" events { metadata_id: 1 duration_ps: 1500000000 } }
  event_metadata { key: 1 value { id: 1 name: "loop_fusion" } }
  event_metadata { key: 2 value { id: 2 name: "MemcpyD2D" } }
}""")
    assert workloads.stream_events(profile) == [1.5, 0.25, 0.001]


def test_a_run_without_a_gpu_has_no_launches():
    ran = []
    assert workloads.gpu_launches(lambda: ran.append(jax.numpy.ones(3).sum())) == []
    assert ran == [3]
