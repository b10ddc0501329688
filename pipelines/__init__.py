"""DALI graphs. This folder is the package ``sqt_fast.pipelines``; nothing else imports DALI."""

if __name__ == "pipelines":
    raise ImportError("pipelines/ is the package sqt_fast.pipelines: import it by that name")
