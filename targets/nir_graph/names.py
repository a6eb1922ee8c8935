"""Names of nodes that every tool can load."""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterable

LONGEST = 100
# fmt: off
#: Public attributes of ``torch.nn.ModuleDict``, in which nirtorch keeps the nodes by name: it refuses these.
_ATTRIBUTES = frozenset({
    "T_destination", "add_module", "apply", "bfloat16", "buffers", "call_super_init", "children", "clear",
    "compile", "cpu", "cuda", "double", "dump_patches", "eval", "extra_repr", "float", "forward", "get_buffer",
    "get_extra_state", "get_parameter", "get_submodule", "half", "ipu", "items", "keys", "load_state_dict",
    "modules", "mtia", "named_buffers", "named_children", "named_modules", "named_parameters", "parameters", "pop",
    "register_backward_hook", "register_buffer", "register_forward_hook", "register_forward_pre_hook",
    "register_full_backward_hook", "register_full_backward_pre_hook", "register_load_state_dict_post_hook",
    "register_load_state_dict_pre_hook", "register_module", "register_parameter", "register_state_dict_post_hook",
    "register_state_dict_pre_hook", "requires_grad_", "set_extra_state", "set_submodule", "share_memory",
    "state_dict", "to", "to_empty", "train", "training", "type", "update", "values", "xpu", "zero_grad"
})
# fmt: on


def distinct(name: str, taken: Iterable[str]) -> str:
    """Return `name`, with a number behind it if it is `taken`."""
    used, number, candidate = set(taken), 1, name
    while candidate in used:
        number += 1
        candidate = f"{name}_{number}"
    return candidate


def portable_names(names: Iterable[str]) -> dict[str, str]:
    """Return for each of `names` a distinct one that torch, Python and HDF5 take as it is.

    At most `LONGEST` letters, digits and underscores, a letter first (torch takes no dots, HDF5 no slashes), no Python
    keyword, and nothing that is an attribute of the module that nirtorch puts the nodes into.
    """
    found: dict[str, str] = {}
    for name in names:
        plain = re.sub(r"[^A-Za-z0-9_]", "_", name)[:LONGEST]
        if not plain[:1].isalpha():
            plain = f"n{plain}"
        if keyword.iskeyword(plain) or plain in _ATTRIBUTES:
            plain = f"{plain}_"
        found[name] = distinct(plain, found.values())
    return found
