"""What pip needs to know; settings.ini says all of it."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
parser = ConfigParser(delimiters=["="])
parser.read(HERE / "settings.ini", encoding="utf-8")
settings = parser["DEFAULT"]


class BuildWithShipped(build_py):
    """Copies the miniature networks and the notebooks into the wheel, under the package; an editable install reads them here."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        mini = HERE / "data" / "mini"
        files = [path for part in ("lm", "tower") for path in (mini / part).rglob("*") if path.is_file()]
        files += [mini / "checkpoint.safetensors", mini / "manifest.json"]
        files += [path for path in (HERE / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts]
        for path in files:
            target = Path(self.build_lib, settings["lib_path"], "shipped", path.relative_to(HERE))
            self.mkpath(str(target.parent))
            self.copy_file(str(path), str(target))


setup(
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    keywords=settings["keywords"],
    author=settings["author"],
    author_email=settings["author_email"],
    license="Apache-2.0",
    packages=find_packages(include=[settings["lib_path"], f"{settings['lib_path']}.*"]),
    python_requires=f">={settings['min_python']}",
    install_requires=settings["requirements"].split(),
    extras_require={"dev": " ".join(settings[f"{name}_requirements"] for name in ("dev", "faiss", "track", "packed", "real")).split(),  # tests try what is optional
                    "faiss": settings["faiss_requirements"].split(),
                    "track": settings["track_requirements"].split(),
                    "packed": settings["packed_requirements"].split(),
                    "real": settings["real_requirements"].split()},
    cmdclass={"build_py": BuildWithShipped},
    package_data={settings["lib_path"]: ["py.typed"]},
    entry_points={"console_scripts": [f"fromage={settings['lib_path']}.chat.command:main"],
                  "nbdev": [f"{settings['lib_path']}={settings['lib_path']}._modidx:d"]},
    zip_safe=False,
)
