"""What pip needs to know; settings.ini says all of it."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent
parser = ConfigParser(delimiters=["="])
parser.read(HERE / "settings.ini", encoding="utf-8")
settings = parser["DEFAULT"]

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
    packages=[settings["lib_path"]],
    python_requires=f">={settings['min_python']}",
    install_requires=settings["requirements"].split(),
    extras_require={"dev": " ".join(settings[f"{name}_requirements"] for name in ("dev", "faiss", "real")).split(),  # tests try what is optional
                    "faiss": settings["faiss_requirements"].split(),
                    "real": settings["real_requirements"].split()},
    entry_points={"nbdev": [f"{settings['lib_path']}={settings['lib_path']}._modidx:d"]},
    zip_safe=False,
)
