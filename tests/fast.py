"""What XLA may leave out where programs are tiny: compiling takes most of the suite's time."""

from importlib.metadata import version

OPTIONS = {"xla_backend_optimization_level": 0}
if version("jaxlib").startswith("0.10."):  # later ones end a process that names this one
    OPTIONS["xla_cpu_use_fusion_emitters"] = False
XLA_FLAGS = " ".join(f"--{name}={str(value).lower()}" for name, value in OPTIONS.items())
