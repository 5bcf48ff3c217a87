"""Operator: registers every file of every input for delivery by one agent.

    python -m clara_flow.operators.register_results --agent ClaraSCU --data '["MYPACS"]'

Writes the record `delivery.json` (see `record`) into the report folder, from where the platform makes the delivery
task. Registering the same results again leaves the record as it is.
"""

from __future__ import annotations

import argparse

from clara_flow.operators.register_results.record import (
    RECORD_NAME,
    RegistrationError,
    checked_agent,
    checked_parameters,
    delivery_record,
    is_registered,
)
from clara_flow.operators.sdk import Driver, Payload, log


def register(driver: Driver, payload: Payload) -> bool:
    """Execute handler; `driver.application_data` is (agent, parameters)."""
    agent, parameters = driver.application_data
    if driver.report_dir is None:
        log.error("no report folder to register the results in; stand-alone, set CLARA_REPORT_DIR to one")
        return False
    try:
        record = delivery_record(
            payload.input_entries,
            agent=agent,
            parameters=parameters,
            job_id=str(driver.job_id),
            operator=driver.stage_name,
        )
    except RegistrationError as problem:
        log.error(str(problem))
        return False
    if is_registered(record, driver.report_dir):
        log.info("these results are registered already", agent=agent, files=len(record["files"]))
        return True
    driver.report(RECORD_NAME, record)
    log.info(
        "results registered", agent=agent, files=len(record["files"]), bytes=sum(f["size"] for f in record["files"])
    )
    return True


def main(arguments: list[str] | None = None) -> None:
    """Run the operator; ends the process with the driver's exit code, or 2 for wrong arguments."""
    parser = argparse.ArgumentParser(
        prog="register", description="Register result files for delivery.", allow_abbrev=False
    )
    parser.add_argument("--agent", required=True, help="name of the agent that delivers, such as ClaraSCU")
    parser.add_argument("--data", default="", help="""the agent's parameters as JSON, such as '["MYPACS"]'""")
    options = parser.parse_args(arguments)
    try:
        application_data = checked_agent(options.agent), checked_parameters(options.data)
    except RegistrationError as problem:
        parser.error(str(problem))
    with Driver(execute_handler=register, application_data=application_data):
        pass


if __name__ == "__main__":
    main()
