"""build: a checkpoint, a GGUF file or a hub repository becomes one artifact per quantization in the store.

First a plan, then the work. The same inputs give the same digests on every machine: no name, time or path of this one
gets into a blob.
"""

from modelpack.build.evidence import evidence_of
from modelpack.build.plan import BuildPlan, Origin, Variant, plan_build
from modelpack.build.run import BuiltVariant, run_build

__all__ = ["BuildPlan", "BuiltVariant", "Origin", "Variant", "evidence_of", "plan_build", "run_build"]
