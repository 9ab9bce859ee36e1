"""The web page: Gradio on the same app, job table and files as the API."""

import base64
import io
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI
from gradio.components import Component
from PIL import Image

from magicvideo.errors import UserError
from magicvideo.studio.engine import parameters_of, read_recipe
from magicvideo.studio.files import PREVIEW
from magicvideo.studio.jobs import ACTIVE, Job
from magicvideo.studio.markup import Markup
from magicvideo.studio.page_data import DataView, RunsView
from magicvideo.studio.page_guard import PageGuard
from magicvideo.studio.responses import ApiError
from magicvideo.studio.security import CLIENT_HEADER, LOCAL_CLIENT
from magicvideo.studio.service import Studio

EXAMPLES = (
    "guard, medium-light skin tone, yellow background",
    "woman cook, dark skin tone, cyan background",
    "man juggling, light skin tone, red background",
    "beer mug, green background",
    "sailboat, blue background",
    "panda, lime background",
)
_FORMATS = ("mp4", "webm", "webp", "gif")
_RANDOM_SEEDS = 2**32
_TICK = 0.5
_GALLERY_TICK = 2.0
_GALLERY_PAGE = 24
_VARIATIONS = 4
_MOST_COMPARED = 6
_VIDEO_SUFFIXES = [".mp4", ".webm", ".webp", ".gif", ".png"]
_QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
_CLICKS = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-action]');
  if (button) trigger('act', {action: button.dataset.action, id: button.dataset.id});
});
"""
# lists that screen readers reach have names; Gradio gives its icon buttons and toasts theirs
_HEAD = '<meta name="color-scheme" content="light dark">'


def mount_page(app: FastAPI, studio: Studio) -> FastAPI:
    """Serve the page at `/` of an app; nothing on it comes from another server."""
    page = Page(studio)
    gr.mount_gradio_app(
        app,
        page.build(),
        path="/",
        allowed_paths=[],
        blocked_paths=[],
        max_file_size=studio.config.limits.body_bytes,
        show_error=True,
        ssr_mode=False,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
        theme=_theme(),
        css=Path(__file__).with_name("page.css").read_text(encoding="utf-8"),
        head=_HEAD,
    )
    app.add_middleware(PageGuard)
    return app


class Page:
    """The four tabs: Create, Gallery, Train, Data.

    Args:
        studio: What it shows.
    """

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self._markup = Markup()
        self._runs, self._data = RunsView(studio.config.runs), DataView(studio.config.data)
        traits = studio.engine.capabilities
        self._has_motion = traits.has_motion
        self._usual_fps = traits.default("fps")
        self._usual_seconds = round(studio.engine.seconds_of(), 1)

    def build(self) -> gr.Blocks:
        """Return the page."""
        with gr.Blocks(title="magicvideo studio", analytics_enabled=False, fill_width=True) as page:
            gr.HTML(self._markup.title(self._studio.engine.name))
            with gr.Tabs() as tabs:
                with gr.Tab("Create", id="create"):
                    create = self._build_create()
                with gr.Tab("Gallery", id="gallery") as gallery_tab:
                    self._build_gallery(page, tabs, gallery_tab, create)
                with gr.Tab("Train", id="train") as train_tab:
                    self._build_train(train_tab)
                with gr.Tab("Data", id="data") as data_tab:
                    self._build_data(data_tab)
        return page

    # -- create -----------------------------------------------------------------------------------

    def _build_create(self) -> "_Create":
        with gr.Row(equal_height=False, elem_id="create"):
            with gr.Column(min_width=280, elem_id="ask"):
                prompt, picture, generate, cancel = self._build_question()
            with gr.Column(min_width=280, elem_id="refine"):
                gr.Examples(
                    [[text] for text in EXAMPLES],
                    inputs=[prompt],
                    label="Examples",
                    elem_id="examples",
                )
                with gr.Accordion("Settings", open=False):
                    settings = self._build_settings()
                    recipe = gr.File(
                        label="Read the settings of a video: drop a file of magicvideo",
                        file_types=_VIDEO_SUFFIXES,
                        type="binary",
                        height=160,
                        elem_id="recipe",
                    )
            with gr.Column(min_width=280, elem_id="watch"):
                stage = gr.HTML(self._markup.stage(None, "", None), elem_id="stage")
        job_id = gr.BrowserState("", storage_key="magicvideo-job", secret="magicvideo")
        timer = gr.Timer(_TICK, active=False)
        controls, shown = [prompt, *settings], [stage, cancel, timer]
        outputs = [job_id, settings[0], *shown]
        for event in (generate.click, prompt.submit):
            event(self._generate, [picture, *controls], outputs, **_QUIET)
        cancel.click(self._cancel, [job_id], shown, **_QUIET)
        timer.tick(self._show, [job_id], shown, **_QUIET)
        recipe.upload(self._read_recipe, [recipe], controls, **_QUIET)
        return _Create(controls, picture, shown, job_id)

    def _build_question(self) -> tuple[gr.Textbox, gr.Image, gr.Button, gr.Button]:
        """Return prompt, picture to begin with, and the buttons to generate and to cancel."""
        prompt = gr.Textbox(
            "",
            label="Prompt",
            placeholder="What the video shows, such as: panda, green background",
            lines=2,
            max_lines=6,
            autofocus=True,
            elem_id="prompt",
        )
        picture = gr.Image(
            label="Picture to begin with (optional)",
            type="filepath",
            image_mode=None,
            sources=["upload", "clipboard"],
            height=130,
            visible=self._studio.engine.takes_pictures,
            buttons=[],
            elem_id="picture",
        )
        with gr.Row():
            generate = gr.Button("Generate", variant="primary", elem_id="generate")
            cancel = gr.Button("Cancel", variant="stop", interactive=False, elem_id="cancel")
        return prompt, picture, generate, cancel

    def _build_settings(self) -> list[Component]:
        """Return the controls that are folded away, in the order of `_Create.NAMES`."""
        engine = self._studio.engine
        usual, longest = engine.capabilities.default, round(engine.longest_seconds, 1)
        loras = engine.lora_names()
        with gr.Row():
            seed = gr.Textbox("", label="Seed", max_length=19, elem_id="seed")
            keep_seed = gr.Checkbox(label="Keep this seed", elem_id="keep-seed")
        return [
            seed,
            keep_seed,
            gr.Slider(
                2,
                16,
                self._usual_fps,
                step=0.5,
                label="Key frames per second",
                info="Fewer lie further apart and move more.",
            ),
            gr.Checkbox(
                label="Choose the motion", visible=self._has_motion, elem_id="choose-motion"
            ),
            gr.Slider(
                -2,
                2,
                0,
                step=0.1,
                label="Motion",
                info="0 is the mean of the training clips; more moves more.",
                visible=self._has_motion,
            ),
            gr.Slider(0.5, longest, self._usual_seconds, step=0.1, label="Seconds"),
            gr.Slider(1, 50, usual("num_inference_steps"), step=1, label="Steps"),
            gr.Slider(
                1,
                12,
                usual("guidance_scale"),
                step=0.5,
                label="Guidance",
                info="How closely to follow the prompt; 1 disables guidance.",
            ),
            gr.Textbox("", label="Negative prompt", lines=1),
            gr.Radio(_FORMATS, value="mp4", label="Format"),
            gr.Dropdown(loras, label="LoRA", multiselect=True, max_choices=4, visible=bool(loras)),
            gr.Slider(0, 2, 1.0, step=0.1, label="LoRA scale", visible=bool(loras)),
        ]

    def _generate(
        self,
        picture: str | None,
        prompt: str,
        seed: str,
        keep_seed: bool,
        fps: int | float,
        choose_motion: bool,
        motion: int | float,
        seconds: int | float,
        steps: int | float,
        guidance: int | float,
        negative: str,
        file_format: str,
        lora: list[str] | None,
        lora_scale: int | float,
        request: gr.Request,
    ) -> tuple[Any, ...]:
        """Submit what the controls say; returns the job's id, the seed and what is shown.

        Numbers arrive as JSON from the browser, where 6.0 is 6.
        """
        if not keep_seed or not seed.strip():
            seed = str(secrets.randbelow(_RANDOM_SEEDS))
        fields: dict[str, Any] = {
            "prompt": prompt.strip(),
            "seed": seed.strip(),
            "steps": int(steps),
            "guidance": guidance,
            "format": file_format,
        }
        if fps != self._usual_fps:
            fields["fps"] = fps
        if self._has_motion and choose_motion:
            fields["motion"] = motion
        if seconds != self._usual_seconds:
            fields["seconds"] = seconds
        if negative.strip():
            fields["negative_prompt"] = negative.strip()
        if lora:
            fields["lora"] = [f"{name}:{lora_scale:g}" for name in lora]
        content = None if picture is None else Path(picture).read_bytes()
        job = self._submit(fields, _client(request), content)
        return (job.id, seed, *self._shown(job))

    def _submit(self, fields: dict[str, Any], client: str, picture: bytes | None = None) -> Job:
        try:
            return self._studio.submit(fields, client=client, picture=picture)[0]
        except ApiError as error:
            raise gr.Error(error.message, duration=10, print_exception=False) from None

    def _cancel(self, job_id: str, request: gr.Request) -> tuple[Any, ...]:
        job = self._find(job_id, _client(request))
        if job is not None:
            self._studio.store.cancel(job.id)
        return self._show(job_id, request)

    def _show(self, job_id: str, request: gr.Request) -> tuple[Any, ...]:
        return self._shown(self._find(job_id, _client(request)))

    def _shown(self, job: Job | None) -> tuple[Any, ...]:
        """Return the stage, the cancel button and the timer for a job."""
        is_active = job is not None and not job.is_finished
        html = self._markup.stage(job, self._status(job), self._preview(job))
        return html, gr.Button(interactive=is_active), gr.Timer(active=is_active)

    def _status(self, job: Job | None) -> str:
        if job is None:
            return ""
        position = self._studio.store.position(job) if job.state == "queued" else 0
        return self._markup.status(job, position)

    def _preview(self, job: Job | None) -> str | None:
        if job is None or job.is_finished or not job.preview:
            return None
        try:
            content = self._studio.files.read(f"{job.id}-{PREVIEW}")
        except FileNotFoundError:
            return None
        return f"data:image/webp;base64,{base64.b64encode(content).decode()}"

    def _find(self, job_id: str, client: str) -> Job | None:
        try:
            return self._studio.owned(str(job_id), client)
        except ApiError:
            return None

    def _read_recipe(self, content: bytes | None) -> list[Any]:
        if content is None:
            return [gr.skip()] * len(_Create.NAMES)
        try:
            fields = read_recipe(content)
        except UserError as error:
            raise gr.Error(str(error), duration=10, print_exception=False) from None
        gr.Info("The settings of the video are filled in.")
        return self._fill(fields)

    def _fill(self, fields: dict[str, Any]) -> list[Any]:
        """Return the values of the controls for the parameters of a request."""
        traits = self._studio.engine.capabilities
        fps = float(fields.get("fps") or self._usual_fps)
        frames = fields.get("frames") or traits.max_frames
        seconds = fields.get("seconds") or self._studio.engine.seconds_of(frames, fps)
        loras = [str(name).partition(":") for name in fields.get("lora") or []]
        return [
            fields.get("prompt", ""),
            str(fields.get("seed", "")),
            True,
            fps,
            "motion" in fields,
            fields.get("motion", 0),
            round(seconds, 1),
            fields.get("steps") or traits.default("num_inference_steps"),
            fields.get("guidance", traits.default("guidance_scale")),
            fields.get("negative_prompt") or "",
            fields.get("format", "mp4"),
            [name for name, _, _ in loras],
            float(loras[0][2] or 1.0) if loras else 1.0,
        ]

    # -- gallery ----------------------------------------------------------------------------------

    def _build_gallery(
        self, page: gr.Blocks, tabs: gr.Tabs, tab: gr.Tab, create: "_Create"
    ) -> None:
        search = gr.Textbox(
            "", label="Search prompts", placeholder="Words of the prompt", elem_id="search"
        )
        compare = gr.HTML("", js_on_load=_CLICKS, elem_id="compare")
        gallery = gr.HTML("", js_on_load=_CLICKS, elem_id="gallery")
        more = gr.Button("Show more", visible=False, elem_id="more")
        chosen, count, seen = gr.State([]), gr.State(_GALLERY_PAGE), gr.State("")
        timer = gr.Timer(_GALLERY_TICK, active=False)
        looks: dict[str, Any] = {
            "inputs": [search, chosen, count, seen],
            "outputs": [gallery, compare, more, timer, seen],
            **_QUIET,
        }
        tab.select(self._open_gallery, **looks)
        search.change(self._open_gallery, trigger_mode="always_last", **looks)
        timer.tick(self._look, **looks)
        more.click(lambda number: number + _GALLERY_PAGE, [count], [count], **_QUIET).then(
            self._open_gallery, **looks
        )
        acts: dict[str, Any] = {
            "inputs": [chosen],
            "outputs": [*create.controls, create.picture, tabs, chosen],
            **_QUIET,
        }
        for part in (gallery, compare):
            part.act(self._act, **acts).then(self._open_gallery, **looks)
        page.load(self._show, [create.job_id], create.shown, **_QUIET)

    def _open_gallery(
        self, search: str, chosen: list[str], count: int, seen: str, request: gr.Request
    ) -> tuple[Any, ...]:
        """Render the gallery, whatever was seen before."""
        return self._look(search, chosen, count, f"{seen}-", request)

    def _look(
        self, search: str, chosen: list[str], count: int, seen: str, request: gr.Request
    ) -> tuple[Any, ...]:
        """Return gallery, comparison, button and timer; the HTML only where it has changed."""
        client = _client(request)
        jobs, has_more = self._studio.store.find(limit=count, search=search[:200], client=client)
        compared = [job for job in (self._find(name, client) for name in chosen) if job]
        previews = {job.id: image for job in compared if (image := self._preview(job))}
        is_active = any(job.state in ACTIVE for job in [*jobs, *compared])
        facts = [(job.id, job.state, job.progress // 10, job.preview) for job in [*jobs, *compared]]
        now = f"{search}|{chosen}|{has_more}|{facts}"
        if now == seen:
            return gr.skip(), gr.skip(), gr.skip(), gr.skip(), seen
        return (
            self._markup.gallery(
                jobs, search, chosen, can_extend=self._studio.engine.extends_videos
            ),
            self._markup.compare(compared, previews),
            gr.Button(visible=has_more),
            gr.Timer(active=is_active),
            now,
        )

    def _act(self, chosen: list[str], event: gr.EventData, request: gr.Request) -> list[Any]:
        """Do what a button of the gallery says."""
        data = event._data if isinstance(event._data, dict) else {}
        action, client = data.get("action"), _client(request)
        filled: list[Any] = [gr.skip()] * (len(_Create.NAMES) + 1)
        tabs: Any = gr.skip()
        if action == "clear":
            return [*filled, tabs, []]
        job = self._find(str(data.get("id")), client)
        if job is None:
            raise gr.Error("The video is gone.", print_exception=False)
        if action == "again":
            filled = [*self._fill(self._parameters(job)), self._picture(job)]
            tabs = gr.Tabs(selected="create")
        elif action == "variations":
            chosen = [job.id, *self._vary(job, client)]
        elif action == "extend":
            chosen = [job.id, self._extend(job, client)]
        elif action == "compare":
            others = [name for name in chosen if name != job.id]
            chosen = others if job.id in chosen else [*others, job.id][-_MOST_COMPARED:]
        elif action == "cancel":
            self._studio.store.cancel(job.id)
        elif action == "delete":
            self._studio.delete(job)
            chosen = [name for name in chosen if name != job.id]
        return [*filled, tabs, chosen]

    def _picture(self, job: Job) -> Image.Image | None:
        """Return the picture that a job began with, if there is one."""
        if job.picture is None or not job.picture.endswith(".png"):
            return None
        with Image.open(io.BytesIO(self._studio.files.read(job.picture))) as picture:
            return picture.convert("RGBA")

    def _vary(self, job: Job, client: str) -> list[str]:
        """Ask for the same video with the seeds that follow."""
        first = int(job.parameters["seed"])
        made = []
        for seed in range(first + 1, first + 1 + _VARIATIONS):
            fields = {**job.parameters, "seed": seed}
            try:
                made.append(self._studio.submit(fields, client=client, source=job)[0].id)
            except ApiError as error:
                raise gr.Error(error.message, duration=10, print_exception=False) from None
        return made

    def _extend(self, job: Job, client: str) -> str:
        """Ask for a video and its continuation, as long as the model makes at once."""
        try:
            return self._studio.extend(job, {}, client=client)[0].id
        except ApiError as error:
            raise gr.Error(error.message, duration=10, print_exception=False) from None

    def _parameters(self, job: Job) -> dict[str, Any]:
        recorded = (
            {} if job.request is None else parameters_of(self._studio.engine.read(job.request))
        )
        return {**recorded, **job.parameters}

    # -- train and data ---------------------------------------------------------------------------

    def _build_train(self, tab: gr.Tab) -> None:
        names = self._runs.names()
        if not names:
            gr.HTML(self._markup.note(self._runs.hint()))
            return
        with gr.Row(elem_id="choose-run"):
            run = gr.Dropdown(names, value=names[0], label="Run", min_width=280)
            value = gr.Dropdown(
                self._runs.values(names[0]), value="loss", label="Value", min_width=280
            )
        plot = gr.LinePlot(x="step", y="value", height=300, label="Curve")
        table = gr.HTML("")
        timer = gr.Timer(5.0, active=False)
        shows: dict[str, Any] = {"inputs": [run, value], "outputs": [plot, table], **_QUIET}
        run.change(
            lambda name: gr.Dropdown(self._runs.values(name), value="loss"),
            [run],
            [value],
            **_QUIET,
        ).then(self._show_run, **shows)
        value.change(self._show_run, **shows)
        timer.tick(self._show_run, **shows)
        tab.select(lambda: gr.Timer(active=True), None, [timer], **_QUIET).then(
            self._show_run, **shows
        )

    def _show_run(self, name: str, value: str) -> tuple[Any, ...]:
        curve = gr.LinePlot(self._runs.curve(name, value), y_title=value)
        return curve, self._markup.run(self._runs.facts(name, value), self._runs.sheet(name))

    def _build_data(self, tab: gr.Tab) -> None:
        if not self._data.is_there:
            gr.HTML(self._markup.note(self._data.hint()))
            return
        search = gr.Textbox("", label="Search captions", placeholder="Words of the caption")
        shown = gr.HTML("")
        looks: dict[str, Any] = {"inputs": [search], "outputs": [shown], **_QUIET}
        tab.select(self._show_data, **looks)
        search.change(self._show_data, trigger_mode="always_last", **looks)

    def _show_data(self, search: str) -> str:
        summary, clips = self._data.clips(search[:200])
        return self._markup.clips(summary, clips, self._data.skipped())


class _Create:
    """What other tabs need of the Create tab."""

    NAMES = (
        "prompt", "seed", "keep_seed", "fps", "choose_motion", "motion", "seconds", "steps",
        "guidance", "negative", "format", "lora", "lora_scale",
    )  # fmt: skip

    def __init__(
        self,
        controls: Sequence[Component],
        picture: gr.Image,
        shown: Sequence[Any],
        job_id: gr.BrowserState,
    ) -> None:
        self.controls, self.picture = controls, picture
        self.shown, self.job_id = shown, job_id


def _client(request: gr.Request) -> str:
    """Return whose page it is, as the gate has found."""
    return str(request.headers.get(CLIENT_HEADER, LOCAL_CLIENT))


def _theme() -> gr.themes.Base:
    """Return a theme whose fonts are the system's: none is fetched."""
    return gr.themes.Base(
        primary_hue=gr.themes.colors.violet,
        neutral_hue=gr.themes.colors.slate,
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    ).set(
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
        block_label_text_color="*neutral_700",
        block_title_text_color="*neutral_700",
        body_text_color_subdued="*neutral_600",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_300",
    )
