"""Copies data_manifest.csv into the package of a wheel; pyproject.toml has everything else.

In a checkout the file is at the top, where people look for it, and setuptools takes package data from inside the package only.
"""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

MANIFEST = "data_manifest.csv"


class BuildWithManifest(build_py):
    """The step that collects a package's files. An editable install needs no copy: it reads the checkout's file."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            self.copy_file(MANIFEST, str(Path(self.build_lib) / "adcore" / "data" / MANIFEST))

    def get_source_files(self) -> list[str]:
        return [*super().get_source_files(), MANIFEST]  # of a source distribution


setup(cmdclass={"build_py": BuildWithManifest})
