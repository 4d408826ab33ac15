# Serves one run: docker run -p 8000:8000 -e LLM_INFLUENCE_TOKEN=... -v RUN_FOLDER:/model:ro IMAGE
# A build of torch for the CPU alone: --build-arg PIP_OPTIONS="--index-url ADDRESS"
FROM python:3.11-slim
WORKDIR /build
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY llm_influence ./llm_influence
ARG PIP_OPTIONS=""
RUN pip install --no-cache-dir -c constraints.txt torch $PIP_OPTIONS \
 && pip install --no-cache-dir -c constraints.txt '.[serve]' \
 && useradd --create-home serving
USER serving
WORKDIR /home/serving
EXPOSE 8000
HEALTHCHECK CMD python -c "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health')"
ENTRYPOINT ["llm-influence", "serve", "--host", "0.0.0.0", "--model", "/model"]
