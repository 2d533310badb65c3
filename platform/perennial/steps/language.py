"""The language of a document."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from perennial.errors import InputError
from perennial.fields import Share
from perennial.steps.base import STEPS, Apply, Dropped, RawDocument, StepConfig

if TYPE_CHECKING:
    from collections.abc import Callable

_MOST_CHARACTERS = 10_000
"""Of a long document the beginning decides: more text makes it slower and no surer."""


@STEPS.register("language")
class LanguageConfig(StepConfig):
    """Keep documents of some languages, by the package py3langid, which brings its model.

    Needs `pip install perennial[language]` on every node that ingests.
    """

    kind: Literal["language"] = "language"
    """name of the step"""
    keep: Annotated[tuple[str, ...], Field(min_length=1)]
    """ISO 639-1 codes of the languages that stay, such as `en`"""
    min_probability: Share = 0.65
    """smallest probability of the language that was found"""

    def build(self) -> Apply:
        """Return the step as a function."""
        classify = self._classifier()

        def judge(document: RawDocument) -> str | Dropped:
            language, probability = classify(document.text[:_MOST_CHARACTERS])
            detail = f"{language} with probability {probability:.2f}"
            if language not in self.keep:
                return Dropped("other-language", detail)
            if probability < self.min_probability:
                return Dropped("unsure-language", detail)
            return document.text

        return judge

    def fingerprint(self) -> str:
        """Return the step's version with the model's."""
        from importlib.metadata import PackageNotFoundError, version

        try:
            return f"{super().fingerprint()} py3langid {version('py3langid')}"
        except PackageNotFoundError:
            raise _missing() from None

    def _classifier(self) -> Callable[[str], tuple[str, float]]:
        try:
            from py3langid.langid import MODEL_FILE, LanguageIdentifier
        except ImportError:
            raise _missing() from None
        identifier: Any = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
        known = set(identifier.nb_classes)
        unknown = [language for language in self.keep if language not in known]
        if unknown:
            raise InputError(
                "run file",
                "corpora.steps",
                f"language.keep: {', '.join(unknown)} cannot be identified",
                f"give some of {' '.join(sorted(known))}",
                code="step-unusable",
            )

        def classify(text: str) -> tuple[str, float]:
            language, probability = identifier.classify(text)
            return str(language), float(probability)

        return classify


def _missing() -> InputError:
    return InputError(
        "run file",
        "corpora.steps",
        "the step `language` needs the package py3langid",
        "use `pip install perennial[language]` on every node that ingests, or leave the step out",
        code="step-unusable",
    )
