"""The section `data`: the data set, and how it is split and changed."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag, model_validator

from glr_dist.config.section import Count, Fraction, Section, name_of, one_of
from glr_dist.errors import ConfigError
from glr_dist.imported import is_import_path
from glr_dist.registry import DATASETS

READ = ("image_folder", "arrays", "table", "tiny_imagenet")  # data sets that are read from data.path


DECODED = ("image_folder", "tiny_imagenet")  # data sets of encoded images


class Augment(Section):
    """Random changes of the training images, drawn anew in each step."""

    crop: int = Field(0, ge=0, description="pixels of zero padding on each side, of which a random crop is taken")
    flip: bool = Field(False, description="mirror half of the images")
    noise: float = Field(0.0, ge=0, allow_inf_nan=False, description="standard deviation of Gaussian noise on pixels")
    cutout: int = Field(0, ge=0, description="side of a random square that is set to 0")


class Data(Section):
    """The data set, its folder, its split and its augmentation."""

    name: Annotated[str, one_of(DATASETS, own=True)] = "digits"
    root: str | None = Field(None, description="folder of the data (default: $GLR_DATA, else ./data)")
    path: str | None = Field(
        None, min_length=1, description="file or folder, in data.root, the working directory or the folder of this file"
    )
    download: bool = Field(True, description="download the data set if it is missing")
    validation: Fraction = Field(0.1, description="share of the training set held out for validation")
    test: Fraction = Field(0.2, description="share held out for testing if the data set has no test set")
    split_seed: int = Field(0, ge=0, lt=2**63, description="seed of the splits; independent of the run's seed")
    target: str | tuple[str, ...] | None = Field(None, description="column of a table that is predicted, or several")
    resize: Count | tuple[Count, Count] | None = Field(
        None, description="length of an image's shorter side in pixels, or [height, width]"
    )
    crop: Count | None = Field(None, description="side in pixels of the central square that is kept of an image")
    channels: Literal[1, 3] = Field(3, description="decode images as grey (1) or colour (3)")
    skip_corrupt: bool = Field(False, description="leave out images that cannot be decoded")
    augment: Augment | None = None

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> Data:
        kinds = {"path": READ, "target": ("table",)}
        kinds |= dict.fromkeys(("resize", "crop", "channels", "skip_corrupt"), DECODED)
        for key, names in kinds.items():
            value, default = getattr(self, key), type(self).model_fields[key].default
            if is_import_path(self.name) and (key != "skip_corrupt" or not self.name.startswith("torchvision:")):
                continue  # the user's function may take it; torchvision's images are decoded
            if value != default and self.name not in names:
                raise ConfigError(f"data.{key}: has no effect with data.name {self.name!r}; leave it out")
        if self.path is None and self.name in READ and self.name != "tiny_imagenet":
            raise ConfigError(f"data.path: is missing; data.name {self.name!r} needs the file or folder to read")
        if self.name == "table" and not self.target:
            raise ConfigError("data.target: is missing; name the column to predict")
        return self


class OwnData(Data):
    """Data of a function of the user's or a class of torchvision. All unknown keys are its arguments."""

    model_config = ConfigDict(extra="allow", frozen=True, validate_default=True)
    __pydantic_extra__: dict[str, Any]

    @property
    def arguments(self) -> dict[str, Any]:
        """The keys that are not fields of the section."""
        return dict(self.__pydantic_extra__)


def _kind_of_data(value: Any) -> str:
    return "OwnData" if is_import_path(name_of(value)) else "Data"


AnyData = Annotated[Annotated[Data, Tag("Data")] | Annotated[OwnData, Tag("OwnData")], Discriminator(_kind_of_data)]
