"""Sphinx extension of this book: theme options."""

THEME = {
    "show_toc_level": 2,
    "search_bar_text": "Search this book",
    "logo": {"text": "Learning Diffusion Models", "alt_text": "Learning Diffusion Models, Step by Step: home"},
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
    "use_fullscreen_button": False,
}


def set_theme_options(app, config):
    config.html_theme_options.update(THEME)


def setup(app):
    app.add_config_value("comments_config", {}, "html")  # Jupyter Book sets it for an extension that this site leaves out
    app.connect("config-inited", set_theme_options, priority=1)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
