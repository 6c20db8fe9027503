"""What the tiny CLIP reads during pre-training: captions, most of which do not name the domain."""

from adu.demo.render import CLASSES, DOMAINS

# True of a picture in any domain, as most captions on the web are silent about style. "A photo of"
# is among them on purpose: it is CLIP's zero-shot template and has to work for a sketch as well.
PLAIN_TEMPLATES = (
    "a photo of a {}.",
    "a photo of the {}.",
    "an image of a {}.",
    "a picture of a {}.",
    "a {}.",
    "the {}.",
    "one {}.",
    "there is a {} in the picture.",
)
DOMAIN_TEMPLATES = {
    "photo": ("a real photograph of a {}.", "a {} photographed by a camera."),
    "painting": ("a painting of a {}.", "a {} painted with a brush."),
    "clipart": ("a clipart of a {}.", "a {} as clip art."),
    "sketch": ("a sketch of a {}.", "a {} drawn with a pencil."),
}


class CaptionBook:
    """All captions, numbered, and which class and domain each of them speaks of.

    Attributes:
        texts: The captions.
        classes: Class number of each caption.
        domains: Domain number of each caption; -1 where it is true of every domain.
    """

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.classes: list[int] = []
        self.domains: list[int] = []
        for class_number, class_name in enumerate(CLASSES):
            for template in PLAIN_TEMPLATES:
                self._add(template.format(class_name), class_number, -1)
            for domain_number, domain in enumerate(DOMAINS):
                for template in DOMAIN_TEMPLATES[domain]:
                    self._add(template.format(class_name), class_number, domain_number)

    def _add(self, text: str, class_number: int, domain_number: int) -> None:
        self.texts.append(text)
        self.classes.append(class_number)
        self.domains.append(domain_number)
