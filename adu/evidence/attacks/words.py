"""Other words: captions that the model was not trained with, and such as name the domain."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, field_validator

from adu.data.forget import forget_domains
from adu.evidence.attacks.base import Attack, Figures
from adu.evidence.subject import Subject, accuracy


class Words(Attack):
    """Asks with other captions."""

    title: ClassVar[str] = "other words"
    asks: ClassVar[str] = "Does it know the forgotten domain when it is asked in other words?"

    templates: tuple[str, ...] = Field(
        ("{class}", "a picture of a {class}.", "a {domain} of a {class}.", "{domain}, {class}"),
        description="captions, with {class} and maybe {domain} for the forgotten domain's name",
    )

    @field_validator("templates")
    @classmethod
    def _name_the_class(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        for template in templates:
            if "{class}" not in template:
                raise ValueError(f"'{template}' must contain {{class}}")
        return templates

    def run(self, subject: Subject) -> Figures:
        """See `Attack.run`."""
        material, test = subject.material, subject.forgotten_test
        classes = material.context.classes
        forgotten = forget_domains(material.forget, material.context.domains)
        domains = " and ".join(name.replace("_", " ") for name in forgotten)
        recovered = {}
        for template in self.templates:
            caption = template.replace("{domain}", domains)
            text_CE = subject.model.caption_features(classes, caption)
            recovered[f"'{caption}'"] = accuracy(subject.logits(test, text_CE), test)
        return Figures(recovered)
