"""flow.yaml as plain data: nothing in it is imported, called or multiplied."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from sidecar.errors import CheckpointError
from sidecar.token2wav.checkpoint_file import require_file

#: The classes that `flow.yaml` may name after `!new:`. Never imported or called: a name tells which maths it is.
CLASSES = {
    "cosyvoice2.flow.flow.CausalMaskedDiffWithXvec",
    "cosyvoice2.transformer.upsample_encoder_v2.UpsampleConformerEncoderV2",
    "cosyvoice2.flow.flow_matching.CausalConditionalCFM",
    "cosyvoice2.flow.decoder_dit.DiT",
}

#: The released file has 2 kB.
MAX_BYTES = 64_000

_REASON_CHARACTERS = 300


def read_flow_yaml(path: Path) -> dict[Any, Any]:
    """The mapping under `flow:`.

    Raises:
        CheckpointError: no such file, not YAML, or YAML that asks for more than to be read.
    """
    size = require_file(path).stat().st_size
    if size > MAX_BYTES:
        raise CheckpointError(f"{path} has {size:,} bytes; a flow configuration has at most {MAX_BYTES:,}")
    try:
        read = yaml.load(path.read_text(encoding="utf-8"), Loader=_DataLoader)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error.message}") from error
    except RecursionError:
        raise CheckpointError(f"{path} cannot be read as YAML data: it is nested too deeply") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())[:_REASON_CHARACTERS]
        raise CheckpointError(f"{path} cannot be read as YAML data: {reason}") from error
    if not isinstance(read, dict) or not isinstance(read.get("flow"), dict):
        raise CheckpointError(f"{path} has no mapping called 'flow' at its top; it is not a flow configuration")
    flow: dict[Any, Any] = read["flow"]
    return flow


class _DataLoader(yaml.SafeLoader):
    """Reads `!new:some.Class` as the mapping under it."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Refuses references: a few lines of them stand for more numbers than fit any memory."""
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]  # so in PyYAML's stubs
            raise CheckpointError(
                f"line {event.start_mark.line + 1} refers to another by *{event.anchor}; write out its value"
            )
        node: yaml.Node | None = super().compose_node(parent, index)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuses a key that is given twice: YAML forbids it, and this parser would take the later one."""
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode) and lines.setdefault(key.value, line) != line:
                raise CheckpointError(f"{key.value[:40]!r} stands in line {lines[key.value]} and in line {line}")
        mapping: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return mapping


def _mapping_of_known_class(loader: yaml.SafeLoader, name: str, node: yaml.Node) -> dict[Any, Any]:
    if name not in CLASSES:
        raise CheckpointError(f"it names the class {name[:100]!r}; this package builds {', '.join(sorted(CLASSES))}")
    if not isinstance(node, yaml.MappingNode):
        raise CheckpointError(f"'!new:{name}' should be followed by a mapping of its sizes")
    return loader.construct_mapping(node, deep=True)


_DataLoader.add_multi_constructor("!new:", _mapping_of_known_class)
