"""How papermill and nbclient run a notebook for adcore: in this interpreter, with this copy of adcore, and exact parameters.

Jupyter finds a kernel by its name, and 'python3' may be that of another environment; a run would then use another copy of
adcore than the one that its record names. A folder named adcore in the current folder would be imported first as well.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from papermill.translators import PythonTranslator, papermill_translators

import adcore

# What the kernel's process runs. The current folder comes back to the path when the kernel starts.
START = """\
import sys
sys.path[:] = [{folder!r}, *(folder for folder in sys.path if folder)]
import adcore
del sys.path[0]
if adcore.__file__ != {file!r}:
    raise SystemExit("the notebook would run " + str(adcore.__file__) + " instead of " + {file!r})
from ipykernel import kernelapp
kernelapp.launch_new_instance()
"""


class ThisPython(AsyncKernelManager):
    """Starts the kernel, whatever its name, as a process of this interpreter that has imported this copy of adcore."""

    @property
    def kernel_spec(self) -> KernelSpec:
        file = str(adcore.__file__)
        # jupyter_client replaces names in braces in these words.
        code = START.format(folder=str(Path(file).parent.parent), file=file).replace("{", "\\x7b")
        return KernelSpec(argv=[sys.executable, "-c", code, "-f", "{connection_file}"], display_name="Python 3",
                          language="python", metadata=get_kernel_dict().get("metadata", {}))


class Literals(PythonTranslator):
    """Writes parameters as Python literals. papermill itself turns a tuple into a text."""

    @classmethod
    def translate(cls, val: Any) -> str:
        return repr(val)


papermill_translators.register("python3", Literals)
