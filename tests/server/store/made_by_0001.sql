BEGIN TRANSACTION;
CREATE TABLE mipro_candidates (
	candidate_id TEXT NOT NULL,
	session_id TEXT NOT NULL,
	number BIGINT NOT NULL,
	instruction_version BIGINT NOT NULL,
	demonstrations_version BIGINT NOT NULL,
	parent_id TEXT,
	label TEXT,
	created_at BIGINT NOT NULL,
	retired_at BIGINT,
	rollouts BIGINT NOT NULL,
	rewards BIGINT NOT NULL,
	reward_sum DOUBLE NOT NULL,
	reward_square_sum DOUBLE NOT NULL,
	calls BIGINT NOT NULL,
	failed_calls BIGINT NOT NULL,
	unapplied_calls BIGINT NOT NULL,
	prompt_tokens BIGINT NOT NULL,
	completion_tokens BIGINT NOT NULL,
	latency_seconds_sum DOUBLE NOT NULL,
	CONSTRAINT pk_mipro_candidates PRIMARY KEY (candidate_id),
	CONSTRAINT fk_mipro_candidates_session_id FOREIGN KEY(session_id) REFERENCES mipro_sessions (session_id),
	CONSTRAINT uq_mipro_candidates_session_id_number UNIQUE (session_id, number)
);
INSERT INTO "mipro_candidates" VALUES('baseline_1','s1',1,1,1,NULL,NULL,1767323045678901,NULL,22,4,2.5,1.75,1,0,0,7,3,0.25);
INSERT INTO "mipro_candidates" VALUES('baseline_of_s2','s2',1,1,1,NULL,NULL,1767323045678901,NULL,0,0,0.0,0.0,0,0,0,0,0,0.0);
INSERT INTO "mipro_candidates" VALUES('cand_2','s1',2,2,1,NULL,NULL,1767323045678901,NULL,23,3,2.25,2.0625,0,0,0,0,0,0.0);
INSERT INTO "mipro_candidates" VALUES('cand_3','s1',3,3,1,NULL,NULL,1767323045678901,1767323113678901,22,2,1.0,0.5,0,0,0,0,0,0.0);
CREATE TABLE mipro_duels (
	session_id TEXT NOT NULL,
	number BIGINT NOT NULL,
	champion_id TEXT NOT NULL,
	challenger_id TEXT NOT NULL,
	predicted_lift DOUBLE NOT NULL,
	rollouts_before BIGINT NOT NULL,
	state TEXT NOT NULL,
	rollouts BIGINT NOT NULL,
	rewards BIGINT NOT NULL,
	reward_sum DOUBLE NOT NULL,
	started_at BIGINT NOT NULL,
	ended_at BIGINT,
	CONSTRAINT pk_mipro_duels PRIMARY KEY (session_id, number),
	CONSTRAINT fk_mipro_duels_challenger_id FOREIGN KEY(challenger_id) REFERENCES mipro_candidates (candidate_id),
	CONSTRAINT fk_mipro_duels_champion_id FOREIGN KEY(champion_id) REFERENCES mipro_candidates (candidate_id),
	CONSTRAINT fk_mipro_duels_session_id FOREIGN KEY(session_id) REFERENCES mipro_sessions (session_id)
);
INSERT INTO "mipro_duels" VALUES('s1',1,'baseline_1','cand_2',0.1,7,'won',44,7,4.75,1767323045678901,1767323111678901);
INSERT INTO "mipro_duels" VALUES('s1',2,'cand_2','cand_3',0.1,7,'running',0,0,0.0,1767323045678901,NULL);
CREATE TABLE mipro_events (
	session_id TEXT NOT NULL,
	seq BIGINT NOT NULL,
	event_type TEXT NOT NULL,
	message TEXT NOT NULL,
	data JSON NOT NULL,
	created_at BIGINT NOT NULL,
	CONSTRAINT pk_mipro_events PRIMARY KEY (session_id, seq),
	CONSTRAINT fk_mipro_events_session_id FOREIGN KEY(session_id) REFERENCES mipro_sessions (session_id)
);
INSERT INTO "mipro_events" VALUES('s1',1,'mipro.session.created','session created with baseline baseline_1','{"baseline_id":"baseline_1","state":"running"}',1767323045678901);
INSERT INTO "mipro_events" VALUES('s2',1,'mipro.session.created','session created with baseline baseline_of_s2','{"baseline_id":"baseline_of_s2","state":"running"}',1767323045678901);
INSERT INTO "mipro_events" VALUES('s1',2,'mipro.candidate.added','candidate 2 added: cand_2','{"candidate_id":"cand_2","number":2,"instruction_version":2,"demonstrations_version":1,"parent_id":null,"label":null}',1767323045678901);
INSERT INTO "mipro_events" VALUES('s1',3,'mipro.candidate.added','candidate 3 added: cand_3','{"candidate_id":"cand_3","number":3,"instruction_version":3,"demonstrations_version":1,"parent_id":null,"label":null}',1767323045678901);
INSERT INTO "mipro_events" VALUES('s1',4,'mipro.duel.opened','duel 1: cand_2 challenges baseline_1','{"number":1,"champion_id":"baseline_1","challenger_id":"cand_2","predicted_lift":0.1}',1767323045678901);
INSERT INTO "mipro_events" VALUES('s1',5,'mipro.reward.received','reward 0.75 for rollout r9, which is not known yet','{"reward_id":"reward_waiting","rollout_id":"r9","score":0.75,"value":0.75,"attached":false}',1767323045678901);
INSERT INTO "mipro_events" VALUES('s1',6,'mipro.rollout.complete','rollout r9 of baseline_1 earned 0.75','{"rollout_id":"r9","candidate_id":"baseline_1","reward":0.75}',1767323045678901);
INSERT INTO "mipro_events" VALUES('s1',7,'mipro.reward.received','reward 1 for rollout r4','{"reward_id":"reward_4","rollout_id":"r4","score":1.0,"value":1.0,"attached":true}',1767323045678901);
INSERT INTO "mipro_events" VALUES('s1',8,'mipro.rollout.complete','rollout r4 of cand_2 earned 1','{"rollout_id":"r4","candidate_id":"cand_2","reward":1.0}',1767323045678901);
INSERT INTO "mipro_events" VALUES('s1',9,'mipro.reward.received','reward 0.25 for rollout r1','{"reward_id":"reward_1","rollout_id":"r1","score":0.25,"value":0.25,"attached":true}',1767323045678901);
INSERT INTO "mipro_events" VALUES('s1',10,'mipro.rollout.complete','rollout r1 of cand_2 earned 0.25','{"rollout_id":"r1","candidate_id":"cand_2","reward":0.25}',1767323045678901);
INSERT INTO "mipro_events" VALUES('s1',11,'mipro.reward.received','reward 0.5 for rollout r2','{"reward_id":"reward_2","rollout_id":"r2","score":0.5,"value":0.5,"attached":true}',1767323045678901);
INSERT INTO "mipro_events" VALUES('s1',12,'mipro.rollout.complete','rollout r2 of cand_3 earned 0.5','{"rollout_id":"r2","candidate_id":"cand_3","reward":0.5}',1767323045678901);
INSERT INTO "mipro_events" VALUES('s1',13,'mipro.reward.received','reward 0.25 for rollout r66','{"reward_id":"reward_66","rollout_id":"r66","score":0.25,"value":0.25,"attached":true}',1767323045678901);
INSERT INTO "mipro_events" VALUES('s1',14,'mipro.rollout.complete','rollout r66 of baseline_1 earned 0.25','{"rollout_id":"r66","candidate_id":"baseline_1","reward":0.25}',1767323045678901);
INSERT INTO "mipro_events" VALUES('s1',15,'mipro.reward.received','reward 0.75 for rollout r3','{"reward_id":"reward_3","rollout_id":"r3","score":0.75,"value":0.75,"attached":true}',1767323045678901);
INSERT INTO "mipro_events" VALUES('s1',16,'mipro.rollout.complete','rollout r3 of baseline_1 earned 0.75','{"rollout_id":"r3","candidate_id":"baseline_1","reward":0.75}',1767323045678901);
INSERT INTO "mipro_events" VALUES('s1',17,'mipro.reward.received','reward 0.75 for rollout r33','{"reward_id":"reward_33","rollout_id":"r33","score":0.75,"value":0.75,"attached":true}',1767323045678901);
INSERT INTO "mipro_events" VALUES('s1',18,'mipro.rollout.complete','rollout r33 of baseline_1 earned 0.75','{"rollout_id":"r33","candidate_id":"baseline_1","reward":0.75}',1767323045678901);
INSERT INTO "mipro_events" VALUES('s1',19,'mipro.reward.received','reward 1 for rollout r34','{"reward_id":"reward_34","rollout_id":"r34","score":1.0,"value":1.0,"attached":true}',1767323045678901);
INSERT INTO "mipro_events" VALUES('s1',20,'mipro.rollout.complete','rollout r34 of cand_2 earned 1','{"rollout_id":"r34","candidate_id":"cand_2","reward":1.0}',1767323045678901);
INSERT INTO "mipro_events" VALUES('s1',21,'mipro.reward.received','reward 0.5 for rollout r32','{"reward_id":"reward_32","rollout_id":"r32","score":0.5,"value":0.5,"attached":true}',1767323045678901);
INSERT INTO "mipro_events" VALUES('s1',22,'mipro.rollout.complete','rollout r32 of cand_3 earned 0.5','{"rollout_id":"r32","candidate_id":"cand_3","reward":0.5}',1767323045678901);
INSERT INTO "mipro_events" VALUES('s1',23,'mipro.duel.closed','duel 1 won: e-value 25','{"number":1,"state":"won","reason":"e-value 25","champion_id":"baseline_1","challenger_id":"cand_2","rollouts":44,"rewards":7}',1767323111678901);
INSERT INTO "mipro_events" VALUES('s1',24,'mipro.champion.promoted','cand_2 takes the place of baseline_1: e-value 25','{"candidate_id":"cand_2","previous_id":"baseline_1","reason":"e-value 25"}',1767323111678901);
INSERT INTO "mipro_events" VALUES('s1',25,'mipro.duel.opened','duel 2: cand_3 challenges cand_2','{"number":2,"champion_id":"cand_2","challenger_id":"cand_3","predicted_lift":0.1}',1767323045678901);
INSERT INTO "mipro_events" VALUES('s1',26,'mipro.candidate.retired','cand_3 retired: behind','{"candidate_id":"cand_3","reason":"behind"}',1767323113678901);
CREATE TABLE mipro_frames (
	position INTEGER NOT NULL,
	frame_id TEXT NOT NULL,
	session_id TEXT NOT NULL,
	rollout_id TEXT NOT NULL,
	candidate_id TEXT,
	created_at BIGINT NOT NULL,
	sensors JSON NOT NULL,
	lever_versions JSON NOT NULL,
	trace_ids JSON NOT NULL,
	CONSTRAINT pk_mipro_frames PRIMARY KEY (position),
	CONSTRAINT fk_mipro_frames_session_id FOREIGN KEY(session_id) REFERENCES mipro_sessions (session_id)
);
INSERT INTO "mipro_frames" VALUES(1,'frame_waiting','s1','r9','baseline_1',1767323045678901,'[{"name":"reward","kind":"reward","value":0.75,"units":null,"metadata":{"score":0.75,"reward_id":"reward_waiting"}}]','{"mipro.instruction.s1":1,"mipro.demonstrations.s1":1,"mipro.prompt.s1":1}','[]');
INSERT INTO "mipro_frames" VALUES(2,'frame_1','s1','r1','baseline_1',1767323045678901,'[{"name":"latency","kind":"timing","value":0.25,"units":"seconds","metadata":{}},{"name":"context_apply","kind":"context_apply","value":true,"units":null,"metadata":{}}]','{"mipro.prompt.s1":1}','["trace_1"]');
INSERT INTO "mipro_frames" VALUES(3,'frame_4','s1','r4','cand_2',1767323045678901,'[{"name":"reward","kind":"reward","value":1.0,"units":null,"metadata":{"score":1.0,"reward_id":"reward_4"}}]','{"mipro.instruction.s1":2,"mipro.demonstrations.s1":1,"mipro.prompt.s1":2}','[]');
INSERT INTO "mipro_frames" VALUES(4,'frame_1','s1','r1','cand_2',1767323045678901,'[{"name":"reward","kind":"reward","value":0.25,"units":null,"metadata":{"score":0.25,"reward_id":"reward_1"}}]','{"mipro.instruction.s1":2,"mipro.demonstrations.s1":1,"mipro.prompt.s1":2}','[]');
INSERT INTO "mipro_frames" VALUES(5,'frame_2','s1','r2','cand_3',1767323045678901,'[{"name":"reward","kind":"reward","value":0.5,"units":null,"metadata":{"score":0.5,"reward_id":"reward_2"}}]','{"mipro.instruction.s1":3,"mipro.demonstrations.s1":1,"mipro.prompt.s1":3}','[]');
INSERT INTO "mipro_frames" VALUES(6,'frame_66','s1','r66','baseline_1',1767323045678901,'[{"name":"reward","kind":"reward","value":0.25,"units":null,"metadata":{"score":0.25,"reward_id":"reward_66"}}]','{"mipro.instruction.s1":1,"mipro.demonstrations.s1":1,"mipro.prompt.s1":1}','[]');
INSERT INTO "mipro_frames" VALUES(7,'frame_3','s1','r3','baseline_1',1767323045678901,'[{"name":"reward","kind":"reward","value":0.75,"units":null,"metadata":{"score":0.75,"reward_id":"reward_3"}}]','{"mipro.instruction.s1":1,"mipro.demonstrations.s1":1,"mipro.prompt.s1":1}','[]');
INSERT INTO "mipro_frames" VALUES(8,'frame_33','s1','r33','baseline_1',1767323045678901,'[{"name":"reward","kind":"reward","value":0.75,"units":null,"metadata":{"score":0.75,"reward_id":"reward_33"}}]','{"mipro.instruction.s1":1,"mipro.demonstrations.s1":1,"mipro.prompt.s1":1}','[]');
INSERT INTO "mipro_frames" VALUES(9,'frame_34','s1','r34','cand_2',1767323045678901,'[{"name":"reward","kind":"reward","value":1.0,"units":null,"metadata":{"score":1.0,"reward_id":"reward_34"}}]','{"mipro.instruction.s1":2,"mipro.demonstrations.s1":1,"mipro.prompt.s1":2}','[]');
INSERT INTO "mipro_frames" VALUES(10,'frame_32','s1','r32','cand_3',1767323045678901,'[{"name":"reward","kind":"reward","value":0.5,"units":null,"metadata":{"score":0.5,"reward_id":"reward_32"}}]','{"mipro.instruction.s1":3,"mipro.demonstrations.s1":1,"mipro.prompt.s1":3}','[]');
CREATE TABLE mipro_lever_versions (
	session_id TEXT NOT NULL,
	lever TEXT NOT NULL,
	version BIGINT NOT NULL,
	value JSON NOT NULL,
	parent_version BIGINT,
	provenance JSON NOT NULL,
	created_at BIGINT NOT NULL,
	CONSTRAINT pk_mipro_lever_versions PRIMARY KEY (session_id, lever, version),
	CONSTRAINT fk_mipro_lever_versions_session_id FOREIGN KEY(session_id) REFERENCES mipro_sessions (session_id)
);
INSERT INTO "mipro_lever_versions" VALUES('s1','instruction',1,'{"text":"Answer."}',NULL,'{"actor":"system","reason":"","operator":"","template_version":null,"source_event_id":null,"source_trace_ids":[],"review":null}',1767323045678901);
INSERT INTO "mipro_lever_versions" VALUES('s1','demonstrations',1,'{"demonstrations":[]}',NULL,'{"actor":"system","reason":"","operator":"","template_version":null,"source_event_id":null,"source_trace_ids":[],"review":null}',1767323045678901);
INSERT INTO "mipro_lever_versions" VALUES('s2','instruction',1,'{"text":"Answer."}',NULL,'{"actor":"system","reason":"","operator":"","template_version":null,"source_event_id":null,"source_trace_ids":[],"review":null}',1767323045678901);
INSERT INTO "mipro_lever_versions" VALUES('s2','demonstrations',1,'{"demonstrations":[]}',NULL,'{"actor":"system","reason":"","operator":"","template_version":null,"source_event_id":null,"source_trace_ids":[],"review":null}',1767323045678901);
INSERT INTO "mipro_lever_versions" VALUES('s1','instruction',2,'{"text":"Answer."}',NULL,'{"actor":"system","reason":"","operator":"","template_version":null,"source_event_id":null,"source_trace_ids":[],"review":null}',1767323045678901);
INSERT INTO "mipro_lever_versions" VALUES('s1','instruction',3,'{"text":"Answer."}',NULL,'{"actor":"system","reason":"","operator":"","template_version":null,"source_event_id":null,"source_trace_ids":[],"review":null}',1767323045678901);
CREATE TABLE mipro_reward_blocks (
	session_id TEXT NOT NULL,
	block BIGINT NOT NULL,
	last BIGINT NOT NULL,
	rewards BIGINT NOT NULL,
	reward_sum DOUBLE NOT NULL,
	CONSTRAINT pk_mipro_reward_blocks PRIMARY KEY (session_id, block),
	CONSTRAINT fk_mipro_reward_blocks_session_id FOREIGN KEY(session_id) REFERENCES mipro_sessions (session_id)
);
INSERT INTO "mipro_reward_blocks" VALUES('s1',0,1,1,0.75);
INSERT INTO "mipro_reward_blocks" VALUES('s1',1,2,1,1.0);
INSERT INTO "mipro_reward_blocks" VALUES('s1',2,3,1,0.25);
INSERT INTO "mipro_reward_blocks" VALUES('s1',3,4,1,0.5);
INSERT INTO "mipro_reward_blocks" VALUES('s1',4,5,1,0.25);
INSERT INTO "mipro_reward_blocks" VALUES('s1',5,6,1,0.75);
INSERT INTO "mipro_reward_blocks" VALUES('s1',6,7,1,0.75);
INSERT INTO "mipro_reward_blocks" VALUES('s1',7,8,1,1.0);
INSERT INTO "mipro_reward_blocks" VALUES('s1',8,9,1,0.5);
CREATE TABLE mipro_rewards (
	reward_id TEXT NOT NULL,
	session_id TEXT NOT NULL,
	rollout_id TEXT NOT NULL,
	candidate_id TEXT,
	correlation_id TEXT,
	score DOUBLE NOT NULL,
	value DOUBLE NOT NULL,
	feedback TEXT,
	expected TEXT,
	example_id TEXT,
	trace_ref TEXT,
	artifact JSON,
	metadata JSON,
	received_at BIGINT NOT NULL,
	request_key TEXT,
	CONSTRAINT pk_mipro_rewards PRIMARY KEY (reward_id),
	CONSTRAINT fk_mipro_rewards_session_id FOREIGN KEY(session_id) REFERENCES mipro_sessions (session_id),
	CONSTRAINT uq_mipro_rewards_session_id_request_key UNIQUE (session_id, request_key),
	CONSTRAINT uq_mipro_rewards_session_id_rollout_id UNIQUE (session_id, rollout_id)
);
INSERT INTO "mipro_rewards" VALUES('reward_waiting','s1','r9','baseline_1',NULL,0.75,0.75,NULL,NULL,NULL,NULL,NULL,NULL,1767323045678901,NULL);
INSERT INTO "mipro_rewards" VALUES('reward_4','s1','r4','cand_2',NULL,1.0,1.0,NULL,NULL,NULL,NULL,NULL,NULL,1767323045678901,NULL);
INSERT INTO "mipro_rewards" VALUES('reward_1','s1','r1','cand_2',NULL,0.25,0.25,NULL,NULL,NULL,NULL,NULL,NULL,1767323045678901,NULL);
INSERT INTO "mipro_rewards" VALUES('reward_2','s1','r2','cand_3',NULL,0.5,0.5,NULL,NULL,NULL,NULL,NULL,NULL,1767323045678901,NULL);
INSERT INTO "mipro_rewards" VALUES('reward_66','s1','r66','baseline_1',NULL,0.25,0.25,NULL,NULL,NULL,NULL,NULL,NULL,1767323045678901,NULL);
INSERT INTO "mipro_rewards" VALUES('reward_3','s1','r3','baseline_1',NULL,0.75,0.75,NULL,NULL,NULL,NULL,NULL,NULL,1767323045678901,NULL);
INSERT INTO "mipro_rewards" VALUES('reward_33','s1','r33','baseline_1',NULL,0.75,0.75,NULL,NULL,NULL,NULL,NULL,NULL,1767323045678901,NULL);
INSERT INTO "mipro_rewards" VALUES('reward_34','s1','r34','cand_2',NULL,1.0,1.0,NULL,NULL,NULL,NULL,NULL,NULL,1767323045678901,NULL);
INSERT INTO "mipro_rewards" VALUES('reward_32','s1','r32','cand_3',NULL,0.5,0.5,NULL,NULL,NULL,NULL,NULL,NULL,1767323045678901,NULL);
CREATE TABLE mipro_rollouts (
	session_id TEXT NOT NULL,
	rollout_id TEXT NOT NULL,
	candidate_id TEXT NOT NULL,
	correlation_id TEXT,
	example_id TEXT,
	seed BIGINT,
	propensity DOUBLE NOT NULL,
	duel_number BIGINT,
	predicted_reward DOUBLE,
	pinned_at BIGINT NOT NULL,
	position BIGINT NOT NULL,
	answered_calls BIGINT NOT NULL,
	example_trace_id TEXT,
	reward_number BIGINT,
	reward DOUBLE,
	CONSTRAINT pk_mipro_rollouts PRIMARY KEY (session_id, rollout_id),
	CONSTRAINT ck_mipro_rollouts_prediction CHECK (duel_number IS NULL OR predicted_reward IS NOT NULL),
	CONSTRAINT fk_mipro_rollouts_candidate_id FOREIGN KEY(candidate_id) REFERENCES mipro_candidates (candidate_id),
	CONSTRAINT fk_mipro_rollouts_session_id FOREIGN KEY(session_id) REFERENCES mipro_sessions (session_id)
);
INSERT INTO "mipro_rollouts" VALUES('s1','r1','cand_2',NULL,'0',0,1.0,1,0.5,1767323046678901,1,1,'trace_1',3,0.25);
INSERT INTO "mipro_rollouts" VALUES('s1','r2','cand_3',NULL,'1',1,1.0,NULL,NULL,1767323047678901,2,0,NULL,4,0.5);
INSERT INTO "mipro_rollouts" VALUES('s1','r3','baseline_1',NULL,'1',1,1.0,1,0.5,1767323048678901,3,0,NULL,6,0.75);
INSERT INTO "mipro_rollouts" VALUES('s1','r4','cand_2',NULL,NULL,NULL,1.0,1,0.5,1767323049678901,4,0,NULL,2,1.0);
INSERT INTO "mipro_rollouts" VALUES('s1','r5','cand_3',NULL,'2',2,1.0,NULL,NULL,1767323050678901,5,0,NULL,NULL,NULL);
INSERT INTO "mipro_rollouts" VALUES('s1','r6','baseline_1',NULL,'0',0,1.0,1,0.5,1767323051678901,6,0,NULL,NULL,NULL);
INSERT INTO "mipro_rollouts" VALUES('s1','r7','cand_2',NULL,'0',0,1.0,1,0.5,1767323052678901,7,0,NULL,NULL,NULL);
INSERT INTO "mipro_rollouts" VALUES('s1','r8','cand_3',NULL,NULL,NULL,1.0,NULL,NULL,1767323053678901,8,0,NULL,NULL,NULL);
INSERT INTO "mipro_rollouts" VALUES('s1','r9','baseline_1',NULL,'1',1,1.0,1,0.5,1767323054678901,9,0,NULL,1,0.75);
INSERT INTO "mipro_rollouts" VALUES('s1','r10','cand_2',NULL,'2',2,1.0,1,0.5,1767323055678901,10,0,NULL,NULL,NULL);
INSERT INTO "mipro_rollouts" VALUES('s1','r11','cand_3',NULL,'2',2,1.0,NULL,NULL,1767323056678901,11,0,NULL,NULL,NULL);
INSERT INTO "mipro_rollouts" VALUES('s1','r12','baseline_1',NULL,NULL,NULL,1.0,1,0.5,1767323057678901,12,0,NULL,NULL,NULL);
INSERT INTO "mipro_rollouts" VALUES('s1','r13','cand_2',NULL,'0',0,1.0,1,0.5,1767323058678901,13,0,NULL,NULL,NULL);
INSERT INTO "mipro_rollouts" VALUES('s1','r14','cand_3',NULL,'1',1,1.0,NULL,NULL,1767323059678901,14,0,NULL,NULL,NULL);
INSERT INTO "mipro_rollouts" VALUES('s1','r15','baseline_1',NULL,'1',1,1.0,1,0.5,1767323060678901,15,0,NULL,NULL,NULL);
INSERT INTO "mipro_rollouts" VALUES('s1','r16','cand_2',NULL,NULL,NULL,1.0,1,0.5,1767323061678901,16,0,NULL,NULL,NULL);
INSERT INTO "mipro_rollouts" VALUES('s1','r17','cand_3',NULL,'2',2,1.0,NULL,NULL,1767323062678901,17,0,NULL,NULL,NULL);
INSERT INTO "mipro_rollouts" VALUES('s1','r18','baseline_1',NULL,'0',0,1.0,1,0.5,1767323063678901,18,0,NULL,NULL,NULL);
INSERT INTO "mipro_rollouts" VALUES('s1','r19','cand_2',NULL,'0',0,1.0,1,0.5,1767323064678901,19,0,NULL,NULL,NULL);
INSERT INTO "mipro_rollouts" VALUES('s1','r20','cand_3',NULL,NULL,NULL,1.0,NULL,NULL,1767323065678901,20,0,NULL,NULL,NULL);
INSERT INTO "mipro_rollouts" VALUES('s1','r21','baseline_1',NULL,'1',1,1.0,1,0.5,1767323066678901,21,0,NULL,NULL,NULL);
INSERT INTO "mipro_rollouts" VALUES('s1','r22','cand_2',NULL,'2',2,1.0,1,0.5,1767323067678901,22,0,NULL,NULL,NULL);
INSERT INTO "mipro_rollouts" VALUES('s1','r23','cand_3',NULL,'2',2,1.0,NULL,NULL,1767323068678901,23,0,NULL,NULL,NULL);
INSERT INTO "mipro_rollouts" VALUES('s1','r24','baseline_1',NULL,NULL,NULL,1.0,1,0.5,1767323069678901,24,0,NULL,NULL,NULL);
INSERT INTO "mipro_rollouts" VALUES('s1','r25','cand_2',NULL,'0',0,1.0,1,0.5,1767323070678901,25,0,NULL,NULL,NULL);
INSERT INTO "mipro_rollouts" VALUES('s1','r26','cand_3',NULL,'1',1,1.0,NULL,NULL,1767323071678901,26,0,NULL,NULL,NULL);
INSERT INTO "mipro_rollouts" VALUES('s1','r27','baseline_1',NULL,'1',1,1.0,1,0.5,1767323072678901,27,0,NULL,NULL,NULL);
INSERT INTO "mipro_rollouts" VALUES('s1','r28','cand_2',NULL,NULL,NULL,1.0,1,0.5,1767323073678901,28,0,NULL,NULL,NULL);
INSERT INTO "mipro_rollouts" VALUES('s1','r29','cand_3',NULL,'2',2,1.0,NULL,NULL,1767323074678901,29,0,NULL,NULL,NULL);
INSERT INTO "mipro_rollouts" VALUES('s1','r30','baseline_1',NULL,'0',0,1.0,1,0.5,1767323075678901,30,0,NULL,NULL,NULL);
INSERT INTO "mipro_rollouts" VALUES('s1','r31','cand_2',NULL,'0',0,1.0,1,0.5,1767323076678901,31,0,NULL,NULL,NULL);
INSERT INTO "mipro_rollouts" VALUES('s1','r32','cand_3',NULL,NULL,NULL,1.0,NULL,NULL,1767323077678901,32,0,NULL,9,0.5);
INSERT INTO "mipro_rollouts" VALUES('s1','r33','baseline_1',NULL,'1',1,1.0,1,0.5,1767323078678901,33,0,NULL,7,0.75);
INSERT INTO "mipro_rollouts" VALUES('s1','r34','cand_2',NULL,'2',2,1.0,1,0.5,1767323079678901,34,0,NULL,8,1.0);
INSERT INTO "mipro_rollouts" VALUES('s1','r35','cand_3',NULL,'2',2,1.0,NULL,NULL,1767323080678901,35,0,NULL,NULL,NULL);
INSERT INTO "mipro_rollouts" VALUES('s1','r36','baseline_1',NULL,NULL,NULL,1.0,1,0.5,1767323081678901,36,0,NULL,NULL,NULL);
INSERT INTO "mipro_rollouts" VALUES('s1','r37','cand_2',NULL,'0',0,1.0,1,0.5,1767323082678901,37,0,NULL,NULL,NULL);
INSERT INTO "mipro_rollouts" VALUES('s1','r38','cand_3',NULL,'1',1,1.0,NULL,NULL,1767323083678901,38,0,NULL,NULL,NULL);
INSERT INTO "mipro_rollouts" VALUES('s1','r39','baseline_1',NULL,'1',1,1.0,1,0.5,1767323084678901,39,0,NULL,NULL,NULL);
INSERT INTO "mipro_rollouts" VALUES('s1','r40','cand_2',NULL,NULL,NULL,1.0,1,0.5,1767323085678901,40,0,NULL,NULL,NULL);
INSERT INTO "mipro_rollouts" VALUES('s1','r41','cand_3',NULL,'2',2,1.0,NULL,NULL,1767323086678901,41,0,NULL,NULL,NULL);
INSERT INTO "mipro_rollouts" VALUES('s1','r42','baseline_1',NULL,'0',0,1.0,1,0.5,1767323087678901,42,0,NULL,NULL,NULL);
INSERT INTO "mipro_rollouts" VALUES('s1','r43','cand_2',NULL,'0',0,1.0,1,0.5,1767323088678901,43,0,NULL,NULL,NULL);
INSERT INTO "mipro_rollouts" VALUES('s1','r44','cand_3',NULL,NULL,NULL,1.0,NULL,NULL,1767323089678901,44,0,NULL,NULL,NULL);
INSERT INTO "mipro_rollouts" VALUES('s1','r45','baseline_1',NULL,'1',1,1.0,1,0.5,1767323090678901,45,0,NULL,NULL,NULL);
INSERT INTO "mipro_rollouts" VALUES('s1','r46','cand_2',NULL,'2',2,1.0,1,0.5,1767323091678901,46,0,NULL,NULL,NULL);
INSERT INTO "mipro_rollouts" VALUES('s1','r47','cand_3',NULL,'2',2,1.0,NULL,NULL,1767323092678901,47,0,NULL,NULL,NULL);
INSERT INTO "mipro_rollouts" VALUES('s1','r48','baseline_1',NULL,NULL,NULL,1.0,1,0.5,1767323093678901,48,0,NULL,NULL,NULL);
INSERT INTO "mipro_rollouts" VALUES('s1','r49','cand_2',NULL,'0',0,1.0,1,0.5,1767323094678901,49,0,NULL,NULL,NULL);
INSERT INTO "mipro_rollouts" VALUES('s1','r50','cand_3',NULL,'1',1,1.0,NULL,NULL,1767323095678901,50,0,NULL,NULL,NULL);
INSERT INTO "mipro_rollouts" VALUES('s1','r51','baseline_1',NULL,'1',1,1.0,1,0.5,1767323096678901,51,0,NULL,NULL,NULL);
INSERT INTO "mipro_rollouts" VALUES('s1','r52','cand_2',NULL,NULL,NULL,1.0,1,0.5,1767323097678901,52,0,NULL,NULL,NULL);
INSERT INTO "mipro_rollouts" VALUES('s1','r53','cand_3',NULL,'2',2,1.0,NULL,NULL,1767323098678901,53,0,NULL,NULL,NULL);
INSERT INTO "mipro_rollouts" VALUES('s1','r54','baseline_1',NULL,'0',0,1.0,1,0.5,1767323099678901,54,0,NULL,NULL,NULL);
INSERT INTO "mipro_rollouts" VALUES('s1','r55','cand_2',NULL,'0',0,1.0,1,0.5,1767323100678901,55,0,NULL,NULL,NULL);
INSERT INTO "mipro_rollouts" VALUES('s1','r56','cand_3',NULL,NULL,NULL,1.0,NULL,NULL,1767323101678901,56,0,NULL,NULL,NULL);
INSERT INTO "mipro_rollouts" VALUES('s1','r57','baseline_1',NULL,'1',1,1.0,1,0.5,1767323102678901,57,0,NULL,NULL,NULL);
INSERT INTO "mipro_rollouts" VALUES('s1','r58','cand_2',NULL,'2',2,1.0,1,0.5,1767323103678901,58,0,NULL,NULL,NULL);
INSERT INTO "mipro_rollouts" VALUES('s1','r59','cand_3',NULL,'2',2,1.0,NULL,NULL,1767323104678901,59,0,NULL,NULL,NULL);
INSERT INTO "mipro_rollouts" VALUES('s1','r60','baseline_1',NULL,NULL,NULL,1.0,1,0.5,1767323105678901,60,0,NULL,NULL,NULL);
INSERT INTO "mipro_rollouts" VALUES('s1','r61','cand_2',NULL,'0',0,1.0,1,0.5,1767323106678901,61,0,NULL,NULL,NULL);
INSERT INTO "mipro_rollouts" VALUES('s1','r62','cand_3',NULL,'1',1,1.0,NULL,NULL,1767323107678901,62,0,NULL,NULL,NULL);
INSERT INTO "mipro_rollouts" VALUES('s1','r63','baseline_1',NULL,'1',1,1.0,1,0.5,1767323108678901,63,0,NULL,NULL,NULL);
INSERT INTO "mipro_rollouts" VALUES('s1','r64','cand_2',NULL,NULL,NULL,1.0,1,0.5,1767323109678901,64,0,NULL,NULL,NULL);
INSERT INTO "mipro_rollouts" VALUES('s1','r65','cand_3',NULL,'2',2,1.0,NULL,NULL,1767323110678901,65,0,NULL,NULL,NULL);
INSERT INTO "mipro_rollouts" VALUES('s1','r66','baseline_1',NULL,'0',0,1.0,1,0.5,1767323111678901,66,0,NULL,5,0.25);
INSERT INTO "mipro_rollouts" VALUES('s1','r67','cand_2',NULL,'0',0,1.0,NULL,NULL,1767323112678901,67,0,NULL,NULL,NULL);
CREATE TABLE mipro_schema (
	version_num VARCHAR(32) NOT NULL,
	CONSTRAINT mipro_schema_pkc PRIMARY KEY (version_num)
);
INSERT INTO "mipro_schema" VALUES('0001');
CREATE TABLE mipro_sessions (
	session_id TEXT NOT NULL,
	state TEXT NOT NULL,
	config JSON NOT NULL,
	metadata JSON NOT NULL,
	correlation_id TEXT,
	agent_id TEXT,
	kind TEXT NOT NULL,
	system_name TEXT,
	proxy_secret TEXT NOT NULL,
	baseline_id TEXT NOT NULL,
	champion_id TEXT NOT NULL,
	proposal_number BIGINT NOT NULL,
	proposal_rewards BIGINT NOT NULL,
	proposal_failures BIGINT NOT NULL,
	proposal_error TEXT,
	proposed_at BIGINT,
	serving_candidate_id TEXT,
	serving_rollouts BIGINT NOT NULL,
	stop_reason TEXT,
	version BIGINT NOT NULL,
	rollouts BIGINT NOT NULL,
	rewards BIGINT NOT NULL,
	reward_block_length BIGINT NOT NULL,
	created_at BIGINT NOT NULL,
	updated_at BIGINT NOT NULL,
	CONSTRAINT pk_mipro_sessions PRIMARY KEY (session_id)
);
INSERT INTO "mipro_sessions" VALUES('s1','running','{"prompt_learning":{"algorithm":"mipro"}}','{}',NULL,NULL,'mipro_online',NULL,'0123456789abcdef0123456789abcdef','baseline_1','cand_2',0,0,0,NULL,NULL,'cand_2',1,NULL,26,67,9,1,1767323045678901,1767323113678901);
INSERT INTO "mipro_sessions" VALUES('s2','running','{"prompt_learning":{"algorithm":"mipro"}}','{}',NULL,NULL,'mipro_online',NULL,'0123456789abcdef0123456789abcdef','baseline_of_s2','baseline_of_s2',0,0,0,NULL,NULL,NULL,0,NULL,1,0,0,1,1767323045678901,1767323045678901);
CREATE TABLE mipro_traces (
	position INTEGER NOT NULL,
	trace_id TEXT NOT NULL,
	session_id TEXT NOT NULL,
	rollout_id TEXT NOT NULL,
	candidate_id TEXT NOT NULL,
	messages JSON NOT NULL,
	response JSON,
	input TEXT NOT NULL,
	output TEXT NOT NULL,
	unapplied_reason TEXT NOT NULL,
	status BIGINT NOT NULL,
	error TEXT NOT NULL,
	latency_seconds DOUBLE NOT NULL,
	prompt_tokens BIGINT NOT NULL,
	completion_tokens BIGINT NOT NULL,
	created_at BIGINT NOT NULL,
	CONSTRAINT pk_mipro_traces PRIMARY KEY (position),
	CONSTRAINT fk_mipro_traces_session_id_rollout_id FOREIGN KEY(session_id, rollout_id) REFERENCES mipro_rollouts (session_id, rollout_id),
	CONSTRAINT uq_mipro_traces_trace_id UNIQUE (trace_id)
);
INSERT INTO "mipro_traces" VALUES(1,'trace_1','s1','r1','baseline_1','[{"role":"user","content":"What?"}]','{"choices":[]}','What?','That.','',200,'',0.25,7,3,1767323045678901);
CREATE INDEX ix_mipro_sessions_created_at_session_id ON mipro_sessions (created_at, session_id);
CREATE INDEX ix_mipro_frames_session_id_position ON mipro_frames (session_id, position);
CREATE INDEX ix_mipro_rollouts_duel ON mipro_rollouts (session_id, duel_number, reward_number) WHERE reward_number IS NOT NULL AND duel_number IS NOT NULL;
CREATE INDEX ix_mipro_rollouts_examples ON mipro_rollouts (session_id, reward_number) WHERE reward_number IS NOT NULL AND example_trace_id IS NOT NULL;
CREATE UNIQUE INDEX ix_mipro_rollouts_rewarded ON mipro_rollouts (session_id, reward_number) WHERE reward_number IS NOT NULL;
CREATE INDEX ix_mipro_rollouts_rewarded_candidate ON mipro_rollouts (session_id, candidate_id, reward_number) WHERE reward_number IS NOT NULL;
CREATE INDEX ix_mipro_rollouts_rewarded_seed ON mipro_rollouts (session_id, seed, reward_number) WHERE reward_number IS NOT NULL AND seed IS NOT NULL;
CREATE INDEX ix_mipro_rollouts_unrewarded ON mipro_rollouts (session_id, position) WHERE reward_number IS NULL;
CREATE INDEX ix_mipro_rollouts_unrewarded_correlation ON mipro_rollouts (session_id, correlation_id, position) WHERE reward_number IS NULL;
CREATE INDEX ix_mipro_traces_unapplied ON mipro_traces (session_id, position) WHERE unapplied_reason != '';
COMMIT;
