"""Steps between a landed document and its tokens: each keeps it, drops it with a reason, or
changes its text. `corpora.steps` of the run file names them.
"""

# Imported for their registration.
from perennial.steps import call, gopher, language, personal, url, web  # noqa: F401
from perennial.steps.base import RAISED, STEPS, Dropped, RawDocument, StepConfig, StepSection
from perennial.steps.pipeline import StepPipeline

__all__ = ["RAISED", "STEPS", "Dropped", "RawDocument", "StepConfig", "StepPipeline", "StepSection"]
