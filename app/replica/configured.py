"""Parts that are made as the settings say."""

from __future__ import annotations

import os

from app.db.database import Database
from app.llm.factory import (
    ModelConfig,
    check_model_name,
)
from app.llm.providers_file import read_providers
from app.services.agent_checks import grants_of
from app.services.agents import AgentService
from app.settings import Settings
from app.tools.operator_tools import operator_registry
from app.tools.registry import ToolRegistry


def load_tools(settings: Settings) -> ToolRegistry:
    """The built-in tools and the operator's own, with the secrets, hosts, servers and sandboxes that they may use.

    Raises:
        ToolRegistrationError: a module of TOOL_MODULES cannot be used.
        ToolSettingError: a setting, or a file that one names, cannot be used.
    """
    tools = operator_registry(settings)
    tools.load_modules(["app.tools.builtin", *settings.tool_modules])
    return tools


def agent_service(database: Database, tools: ToolRegistry, config: ModelConfig) -> AgentService:
    return AgentService(database, tools, lambda model: check_model_name(model, config), grants=grants_of(tools))


def model_config(settings: Settings) -> ModelConfig:
    """Raises ProvidersFileError: the file of PROVIDERS_FILE cannot be used."""
    scripts = settings.agents_dir / "scripts"
    return ModelConfig(
        openai_api_key=settings.openai_api_key.get_secret_value() or None,
        openai_base_url=settings.openai_base_url,
        anthropic_api_key=settings.anthropic_api_key.get_secret_value() or None,
        anthropic_base_url=settings.anthropic_base_url,
        anthropic_prompt_caching=settings.anthropic_prompt_caching,
        scripts_dir=scripts if scripts.is_dir() else None,
        providers=read_providers(settings.providers_file, os.environ) if settings.providers_file else {},
    )
