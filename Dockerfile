# docker build -t uvit_jax .                               CPU
# docker build -t uvit_jax --build-arg EXTRAS=cuda .       NVIDIA GPUs: docker run --gpus all
# docker build -t uvit_jax --build-arg EXTRAS=tpu .        TPUs: docker run --privileged --net=host
# docker run -v "$PWD/runs:/uvit/runs" uvit_jax --config configs/digits.py --workdir runs/digits
FROM python:3.12-slim
ARG EXTRAS=digits
ENV PYTHONUNBUFFERED=1
WORKDIR /uvit
COPY pyproject.toml README.md LICENSE ./
COPY uvit_jax uvit_jax
COPY configs configs
RUN pip install --no-cache-dir ".[digits,${EXTRAS}]"
ENTRYPOINT ["python", "-m", "uvit_jax.main"]
CMD ["--help"]
