"""Model files: safetensors with a JSON header and a checksum; nothing in them is executed."""

import hashlib
import json
from pathlib import Path

import safetensors
import safetensors.torch
import torch


def save_safetensors(path, tensors: dict[str, torch.Tensor], header: dict) -> None:
    """Write tensors and a JSON header, atomically; ValueError where the place cannot be written."""
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    try:
        text = json.dumps(header)
        metadata = {"json": text, "sha256": _checksum(tensors, text)}
        safetensors.torch.save_file(tensors, partial, metadata=metadata)
        partial.replace(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise ValueError(f"cannot write {path}: {error}") from error


def _checksum(tensors, text):
    """Digest of header and tensors: finds damage and edits, not a forger, who can write a new one."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def load_safetensors(path, expected_format: str) -> tuple[dict[str, torch.Tensor], dict]:
    """Read tensors and JSON header; ValueError for a missing, foreign, damaged or non-finite file."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            header = json.loads(metadata.get("json", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, safetensors.SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"cannot read {path} as a model file: {error}") from error
    if header.get("format") != expected_format:
        raise ValueError(
            f"{path} is not a file of this kind (format {header.get('format')!r}, needed {expected_format!r})"
        )
    bad = [
        name
        for name, tensor in tensors.items()
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())
    ]
    if bad:
        raise ValueError(f"{path} holds values that are not finite in {bad}")
    if metadata.get("sha256") != _checksum(tensors, metadata["json"]):
        raise ValueError(f"{path} is damaged: its contents were changed after it was written (checksum)")
    return tensors, header
