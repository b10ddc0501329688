"""Networks exported once a session: it takes seconds."""

from pathlib import Path
from typing import Any

from sqt_fast.network.model import SqueezeTime
from sqt_fast.network.onnx_export import ExportConfig, ExportedNetwork, export_onnx, network_sha256

SIZE = 64
ABOUT = {"weights": "tiny", "labels": '["a", "b"]'}


class ExportedOnce:
    """Exports a network the first time that it is asked for, and gives what it has from then on."""

    def __init__(self, model: SqueezeTime, folder: Path) -> None:
        self.model, self.folder = model, folder
        self.files: dict[Any, bytes] = {}

    def __call__(
        self, precision: str = "fp32", *, size: int = SIZE, kind: str = "normalised"
    ) -> tuple[ExportedNetwork, Path]:
        """Return the tiny network as it is exported, and the file. Do not change them."""
        network = ExportedNetwork(self.model, ExportConfig(size, precision, kind))
        path = self.folder / f"{precision}_{kind}_{size}.onnx"
        if not path.exists():
            self.write(network, path, max_batch=4, about=ABOUT)
        return network, path

    def write(self, network: ExportedNetwork, path: Path, *, max_batch: int, about: dict[str, str]) -> None:
        """Do as ``export_onnx``."""
        import onnx

        key = network.config, network_sha256(network.net)
        if key not in self.files:
            export_onnx(network, path, max_batch=max_batch, about={})
            self.files[key] = path.read_bytes()
        proto = onnx.load_model_from_string(self.files[key])
        for name, text in about.items():
            proto.metadata_props.add(key=name, value=text)
        path.write_bytes(proto.SerializeToString(deterministic=True))
