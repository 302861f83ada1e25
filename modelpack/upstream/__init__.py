"""llama.cpp's own converter in a cage: what modelpack cannot convert by itself, and what it costs to let it in.

It needs torch and transformers (1.2 GB), so it lives in an environment of its own, installed when somebody asks for it,
and runs as a child without network, tokens and credentials.
"""

from modelpack.upstream.conversion import UpstreamPlan, plan_upstream, run_upstream
from modelpack.upstream.environment import RELEASE, UpstreamEnvironment

__all__ = ["RELEASE", "UpstreamEnvironment", "UpstreamPlan", "plan_upstream", "run_upstream"]
