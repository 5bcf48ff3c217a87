"""The sentences of the conformance statement; what is in braces is filled in from the code."""

from __future__ import annotations

INTRODUCTION = """# DICOM conformance statement

Made by `make docs` from what the code negotiates and answers; do not edit. Its order is that of PS3.2 Annex A.

## 1 Overview

clara-flow receives studies, runs pipelines on them, and sends what these make of them to other nodes. It is no
archive: instances are kept for as long as jobs need them. It is research software, not a medical device.
"""

MODEL = """## 2 Contents

[1 Overview](#1-overview), [3 Introduction](#3-introduction), [4 Networking](#4-networking),
[5 Media interchange](#5-media-interchange), [6 Character sets](#6-character-sets), [7 Security](#7-security),
[8 Annexes](#8-annexes)

## 3 Introduction

For those who connect clara-flow to other DICOM nodes. Conformance is no promise of interoperability: try it
(`clara-flow dicom destination test`, and a study sent by hand). Settings are named as in
[clara-flow.toml](clara-flow.toml).

## 4 Networking
### 4.1 Implementation model

```
 modalities, PACS ──C-STORE, C-ECHO, N-ACTION──►  STORAGE-SCP ──► spool ──► groups ──► jobs
 modalities       ──N-CREATE, N-SET────────────►  STORAGE-SCP ────►  │
 DICOMweb clients ──STOW-RS, QIDO-RS, WADO-RS──►  GATEWAY ───────►  │                   │
 PACS, archives   ──────N-EVENT-REPORT─────────►  STORAGE-SCP ───►  │                   │
 PACS, archives   ◄──C-ECHO, C-STORE, N-ACTION──  EXPORT-SCU ◄───────────── deliveries ─┘
 modalities, PACS ◄──────N-EVENT-REPORT─────────  EXPORT-SCU  (where they did not wait for it)
 DICOMweb servers ◄──────────STOW-RS────────────  EXPORT-SCU
 PACS, archives   ◄──C-FIND, C-GET, C-MOVE──────  QUERY-SCU   (for completeness of groups, and inference requests)
```

- **STORAGE-SCP** answers C-ECHO, stores instances, confirms what it stored (storage commitment), and hears
  what modalities do (MPPS). It has as many AE titles as are configured, on one port.
- **EXPORT-SCU** sends results, and asks their receivers to commit themselves where that is configured.
- **QUERY-SCU** asks the source of a study how many instances it has, and fetches the inputs of REST inference
  requests.
- **GATEWAY** is a DICOMweb origin server.

Nothing has to happen in a certain order between them.
"""

POLICIES = """##### 4.2.1.2 Association policies

| | |
|---|---|
| application context | {context} |
| associations at once | {maximum} over all AE titles (`dicom_maximum_associations`); a source may have less |
| asynchronous operations | not supported: a proposal is answered with 1 operation invoked and 1 performed |
| maximum PDU length that is received | {pdu} bytes (`dicom_maximum_pdu_bytes`); what the peer takes is honoured |
| Implementation Class UID | {uid} |
| Implementation Version Name | {name} |
| role selection | SCP only (a peer that wants to be nothing else has the context refused: 1); both of commitment |
| extended negotiation of SOP classes | not supported, skipped |
| user identity | see 7 |
| time for the association request | {request} s from the connection (`dicom_request_timeout_s`) |
| silence within an association | A-ABORT after {idle} s (`dicom_idle_timeout_s`) |
| a message that has begun | A-ABORT when it brings less than {slowest} bytes a second for that long |
| connections without a request | {places} a process; who waits longest makes room for the next |

STORAGE-SCP initiates no association. 0x0000 is answered when the instance is on the disk: written, flushed
(fdatasync, for several instances at once), and noted in a journal that is flushed too, unless the setting
`dicom_fsync` is off.
"""

ACCEPTANCE = """##### 4.2.1.3 Association acceptance

A proposed transfer syntax that is a UID is taken, private and unknown ones too; of several, the first. Data sets are
kept byte for byte: never transcoded, coerced or completed. This is Level 2 (Full) of PS3.4 B.4.1, without exception
of private attributes. Private SOP classes, and storage classes that are newer than this page, are taken as well.
"""

STORAGE = """Instances are identified by their SOP Instance UID within a group (a study, unless the AE title says
otherwise): one that comes again is left out or replaces the first, as the AE title says, and is answered with success
either way. What is received cannot be asked for by DIMSE; by DICOMweb it can (4.2.4) for as long as it is kept.
"""

COMMITMENT = """A request (N-ACTION) of up to {references} references is written to the journal before it is answered.
The N-EVENT-REPORT follows at once, on the same association. A peer that does not acknowledge it there with success or
a warning, because it released or broke the association or refused, is told by EXPORT-SCU on another one (4.2.2.5). A
request that repeats the Transaction UID of one that is still owed takes its place.

An instance is safe when this association stored it, when the records have it in a group that was not discarded, or
when the journal has it and the records are about to. "Safe" means that it was written as 4.2.1.2 says and that its
jobs will be made: it is not archived, and goes when its jobs are over and their retention is.
"""

REPORTS = """As SCU of the class, an N-EVENT-REPORT on an association that the peer opens is taken too. The peer may
be a source, or a destination that is asked for commitment; it may call any AE title of STORAGE-SCP, or the one by
which EXPORT-SCU calls that destination, where nothing but Verification and Storage Commitment is accepted. The role
SCP is accepted where it is negotiated (PS3.7 D.3.3.4), and need not be. A report is answered with success when it is
in the journal, also one of a transaction that nobody knows.
"""

REMEMBERED = """What this association stored, up to {remembered} instances, needs no records to be confirmed.
"""

PROCEDURE_STEP = """What a modality says of the procedure steps that it performs (PS3.4 F.7) is taken by N-CREATE and
N-SET, on any association of any AE title of ours. It serves to tell when a study is complete
([from studies to jobs](../guides/studies-to-jobs.md)); nothing is forwarded, no report is sent, and N-GET is not
supported. These attributes are read and kept, all others are skipped, those of the patient among them:

| Attribute | Tag | N-CREATE | N-SET |
|---|---|---|---|
| Performed Procedure Step Status | (0040,0252) | needed, IN PROGRESS | optional |
| Scheduled Step Attributes Sequence | (0040,0270) | needed | skipped |
| > Study Instance UID | (0020,000D) | needed in each item | skipped |
| Performed Series Sequence | (0040,0340) | optional | optional; takes the place of the one before |
| > Series Instance UID | (0020,000E) | needed in each item | needed in each item |
| > Referenced Image Sequence | (0008,1140) | optional | optional |
| > Referenced Non-Image Composite SOP Instance Sequence | (0040,0220) | optional | optional |
| >> Referenced SOP Class UID | (0008,1150) | needed in each item | needed in each item |
| >> Referenced SOP Instance UID | (0008,1155) | needed in each item | needed in each item |

A step may be ended without any series, although Table F.7.2-1 asks for one. An N-CREATE without Affected SOP Instance
UID gets a UID of ours. A step is known to all processes of the listener when it is answered, also while the database
is away, and for `dicom_record_retention_s` after its last word.
"""

OTHER_OPERATIONS = """##### 4.2.1.7 Other operations

They are answered with 0x0211 (unrecognised operation); C-CANCEL is taken and not answered.
"""

EXPORT = """#### 4.2.2 EXPORT-SCU

##### 4.2.2.1 SOP classes

| SOP class | Role | Transfer syntaxes proposed |
|---|---|---|
| every SOP class UID that a result has | SCU | one context: the file's own; another one: {plain} |
| Verification ({verification}) | SCU | {plain} |
| Storage Commitment Push Model ({commitment}) | SCU; SCP, by role selection, to report | {plain} |

A file goes byte for byte in its own transfer syntax. Only where the peer does not take that, it is decoded to one of
the others; nothing is ever compressed, and UIDs stay. The test of a destination (`clara-flow dicom destination test`)
stores a synthetic Secondary Capture image, with the patient {patient}.

##### 4.2.2.2 Association policies

Associations are initiated when there are deliveries for a destination, and rest {rest:g} s for the next one. Up to
{maximum} deliveries are under way at once (`dicom_scu_maximum_associations`), of each destination as many as its
`--concurrency` says. The calling AE title is `{title}` (`dicom_scu_ae_title`), or the destination's `--calling`.
Contexts beyond {contexts} go over another association. PDUs of up to {pdu} bytes are received and sent. Asynchronous
operations, extended negotiation and user identity are not proposed, role selection only as 4.2.2.5 says. Every answer
has {timeout} s (`dicom_export_timeout_s`). A rejected, aborted or broken association is tried again, {retries} times
(`dicom_export_retries`).

##### 4.2.2.3 Statuses of C-STORE

SENT is success. FAILED is tried again, POISON is not until somebody asks for it (`clara-flow results retry`).
"""

EXPORT_COMMITMENT = """##### 4.2.2.4 Storage commitment

Where a destination has `--commitment`, it is asked for all of a delivery's instances when they are sent. Its report
is waited for on the same association, {wait:g} s after it took the request, and later on any that the peer opens to
STORAGE-SCP (4.2.1.5). Without a report the request is repeated, {retries} times at most; a report that comes later
still counts.

##### 4.2.2.5 Reports of storage commitment

A peer that asked STORAGE-SCP and did not acknowledge the report is told on an association of its own: the
destination whose AE title is the one by which it asked and, of several, whose host is the peer's address. The calling
AE title is the one that the peer had called. Role selection proposes SCP alone; the report is sent whether or not the
peer answers it. What is safe is looked up again for each try. Tries go on, with growing pauses, until the peer answers
with success or a warning, or `dicom_commitment_report_retention_s` is over. Without such a destination the report
waits for one (`clara-flow dicom reports`).
"""

QUERY = """#### 4.2.3 QUERY-SCU

| SOP class | UID | Role | When |
|---|---|---|---|
| Study Root Query/Retrieve: FIND | {find} | SCU | completeness of groups; inference requests by patient or accession |
| Study Root Query/Retrieve: GET | {get} | SCU | inference requests of an interface `DIMSE` |
| Study Root Query/Retrieve: MOVE | {move} | SCU | the same, where C-GET is not taken or brings nothing |
| storage classes marked C-GET in 4.2.1.1 | | SCP, by role selection | during C-GET |

Keys of C-FIND: Query/Retrieve Level STUDY; Study Instance UID, and Number of Study Related Instances as return key;
or Patient ID or Accession Number, and Study Instance UID as return key. C-GET and C-MOVE are at the levels STUDY,
SERIES and IMAGE. The Move Destination is our AE title with the processor `retrieve`:
STORAGE-SCP receives for it as for any other, whatever Move Originator the C-STORE names. Status 0xB000, failed
sub-operations, and fewer instances than the final answer counts are failures, which are tried again.

These associations are made by the library pynetdicom and carry its implementation identification, with the calling AE
title `{title}`. Answers have {find_s:g} s when groups are counted, {get_s:g} s for inference requests;
a C-MOVE is given up after {move_s:g} s without an answer or an instance.
"""

REST = """### 4.3 Network interfaces

TCP over IPv4 or IPv6, on the address of the setting `host`: plain on `dicom_port`, TLS on `dicom_tls_port`, HTTP on
`gateway_port`. Host names of sources and destinations are looked up by the system's resolver.

### 4.4 Configuration

AE titles, sources and destinations are added, changed and deleted while it runs, by `clara-flow dicom` or by REST
([DICOM nodes](../guides/dicom-nodes.md)). AE titles have 1 to 16 characters; case counts.
"""

CHARACTER_SETS = """## 5 Media interchange

None.

## 6 Character sets

Data sets are kept as they come, whatever their character set. Attributes that rules and groups look at are read in the
default repertoire, with code extensions, and in

{names}.

An unknown character set is read as ISO_IR 100. AE titles are ASCII.
"""

SECURITY = """## 7 Security

**Secure transport.** BCP 195 RFC 8996, 9325 TLS Secure Transport Connection Profile (PS3.15 B.12), both as server
(`dicom_tls_port`) and as client (`--tls` of a destination): TLS 1.2 and 1.3, with the cipher suites of TLS 1.3 and,
for TLS 1.2,

{ciphers}

With `dicom_tls_authorities` peers must show a certificate of one of these; servers that we call must show one that
names their host. There is no check of revocation. HTTP is not encrypted by the gateway: put a proxy before it.

**User identity** (PS3.7 D.3.3.7). For sources that must say who they are: types 1 (user name) and 2 (user name and
passcode); other types are rejected. A positive response is given where it is asked for. Other sources' identity is
not looked at.

**De-identification** (PS3.15 Annex E), off unless an AE title or a destination asks for it, by the profiles

{profiles}

UIDs are replaced consistently, and Patient ID by a pseudonym. Pixels are not cleaned; images that say that they have
burned-in annotation are refused. Digital signatures are kept as they are where nothing else is changed, and are not
checked. Audit messages (PS3.15 A.5) are not sent.

## 8 Annexes
### 8.1 IODs created

| SOP class | By |
|---|---|
| Segmentation Storage | the operator DICOM SEG Writer: BINARY, Explicit VR Little Endian, in the study of its source |
| Secondary Capture Image Storage | `clara-flow dicom destination test`: its UIDs are always the same |

Other objects are those that pipelines make. De-identified objects carry Patient Identity Removed, De-identification
Method and its code sequence.

### 8.2 Private attributes, coded terminology, private SOP classes and transfer syntaxes

None are defined.
"""
