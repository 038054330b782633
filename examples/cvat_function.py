"""CVAT auto-annotation function: tag each image of a task with its class.

pip install cvat-cli ./client
cvat-cli task auto-annotate 137 --function-file examples/cvat_function.py -p url=str:http://127.0.0.1:8000 \
    --allow-unmatched-labels

The task needs labels of the model's names, of type "tag" or "any". The key of the service, if it asks for one, is
read from VIT_SERVE_API_KEY.
"""

import cvat_sdk.auto_annotation as cvataa
import PIL.Image

from vit_serve_client import VitClient


class CvatFunction:
    """Detection function whose annotations are tags."""

    def __init__(self, url: str | None = None, timeout: float = 60) -> None:
        self._client = VitClient(url, timeout=timeout)
        labels = self._client.model().labels
        # CVAT allows a name once; several classes of ImageNet share theirs
        self._ids = {name: index for index, name in enumerate(dict.fromkeys(labels))}
        specs = [cvataa.label_spec(name, index, type="tag") for name, index in self._ids.items()]
        self.spec = cvataa.DetectionFunctionSpec(labels=specs)

    def detect(self, context: cvataa.DetectionFunctionContext, image: PIL.Image.Image) -> list[cvataa.DetectionAnnotation]:
        """Return the tag of the best class, or none if its probability is below the threshold that CVAT gives."""
        best = self._client.classify(image, top_k=1).predictions[0]
        if best.probability is not None and best.probability < (context.conf_threshold or 0):
            return []
        return [cvataa.tag(self._ids[best.label])]

    def close(self) -> None:
        """Close the connections, where a program uses the function without cvat-cli."""
        self._client.close()


create = CvatFunction
