"""Settings of every test: no model hub, quick and repeatable property tests."""

import os

from hypothesis import HealthCheck, settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

settings.register_profile(
    "kdexport",
    max_examples=50,
    deadline=None,  # two shared cores: a slow example is no failure
    derandomize=True,  # the same examples everywhere; `--hypothesis-profile=search` looks for more
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("search", max_examples=2000, deadline=None)
settings.load_profile("kdexport")
