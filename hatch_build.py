"""Build hook: compiles the kernels into the package; without a compiler it installs and runs on torch alone."""

from __future__ import annotations

import importlib.util
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

KERNELS = "src/lengthwise/kernels"


class KernelHook(BuildHookInterface):  # type: ignore[misc]
    """Runs `lengthwise.kernels.build` before a wheel, or an editable install, is put together."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile; a wheel with a compiled object is one for this platform."""
        build = _load(Path(self.root) / KERNELS / "build.py")
        try:
            result = build.build()
        except OSError as error:
            self.app.display_warning(f"Lengthwise: the kernels were not compiled: {error}")
            return
        for note in result.notes:
            self.app.display_warning(f"Lengthwise: {note}")
        # the manifest also without an object: it says why there is none
        build_data["artifacts"] += [f"{KERNELS}/_lib/{path.name}" for path in (build.MANIFEST, build.OBJECT)]
        if result.isas:
            build_data["pure_python"] = False
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["tag"] = f"py3-none-{platform}"


def _load(path: Path) -> Any:
    """The build module by its path: the package around it needs torch, which is not there yet."""
    spec = importlib.util.spec_from_file_location("lengthwise_kernels_build", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
