"""Which node conducts a session: claimed, wanted, handed over, given back, inherited from a dead node."""

# `tell` wakes a node, or all with 0; with a minus for a command, or for its answer. A hint only: each node looks by
# itself twice a second.
SESSIONS = """
create function {s}.tell(p_node bigint) returns void language sql as
$$ select pg_notify('{channel}', p_node::text) $$;

create function {s}.locked(p_place text) returns {s}.session language plpgsql as $$
declare t {s}.session;
begin
  loop  -- a row of which nothing was left may be deleted in between
    select * into t from {s}.session x where x.place = p_place for update;
    if found then return t; end if;
    insert into {s}.session (place) values (p_place) on conflict do nothing;
  end loop;
end $$;

-- As programs of step 0 claim.
create function {s}.claimed(p_node bigint, p_limit int) returns setof text language sql as $$
  with me as (select n.id from {s}.node n where n.id = p_node for key share),
    pick as (select t.place from me, {s}.session t where t.owner is null and t.pending > 0
      order by t.rank, t.since limit p_limit for update of t skip locked)
  update {s}.session t set owner = p_node, fence = t.fence + 1, nonce = null from pick
    where t.place = pick.place returning t.place $$;

-- So many of each class first, the oldest ones, if they have waited for so many seconds; then the most urgent ones.
create function {s}.claimed_fairly(p_node bigint, p_shares bigint[], p_after double precision[]) returns setof text
language plpgsql as $$
declare places text[] := '{{}}';
begin
  perform 1 from {s}.node n where n.id = p_node for key share;
  if not found then return; end if;
  for class in 1..cardinality(p_shares) loop
    places := places || array(select t.place from (select s.place, s.since from {s}.session s
        where s.owner is null and s.pending > 0 and s.rank = class - 1
        order by s.since limit p_shares[class] for update skip locked) t
      where p_after[class] = 0 or coalesce((select m.accepted_at from {s}.message m where m.id = t.since)
        < clock_timestamp() - make_interval(secs => p_after[class]), true));
  end loop;
  places := places || array(select s.place from {s}.session s
    where s.owner is null and s.pending > 0 and not s.place = any(places)
    order by s.rank, s.since
    limit (select sum(one) from unnest(p_shares) one) - cardinality(places) for update skip locked);
  return query update {s}.session t set owner = p_node, fence = t.fence + 1, nonce = null
    where t.place = any(places) returning t.place;
end $$;

-- Sessions that no node owns, and whose lanes are still to be told of messages whose end is unknown.
create function {s}.claimed_untold(p_node bigint, p_lanes text[], p_tried bigint[], p_limit int)
returns table (place text, message bigint) language plpgsql as $$
#variable_conflict use_column
declare places text[];
begin
  select array_agg(distinct u.place) into places from (select m.place from {s}.message m
    where m.state = 'unknown' and not m.told and m.lane = any(p_lanes) and not m.id = any(p_tried)
    and not exists (select from {s}.session t where t.place = m.place and t.owner is not null)
    order by m.id limit p_limit) u;
  if places is null then return; end if;
  insert into {s}.session (place) select p from unnest(places) p order by p on conflict do nothing;
  return query
  with me as (select n.id from {s}.node n where n.id = p_node for key share),
    pick as (select t.place from me, {s}.session t where t.owner is null and t.place = any(places)
      for update of t skip locked),
    u as (update {s}.session t set owner = p_node, fence = t.fence + 1, nonce = null from pick
      where t.place = pick.place returning t.place)
  select u.place, m.id from u join {s}.message m on m.place = u.place and m.state = 'unknown' and not m.told;
end $$;

create function {s}.wanted(p_node bigint, p_place text) returns boolean language plpgsql as $$
declare t {s}.session;
begin
  t := {s}.locked(p_place);
  if not exists (select from {s}.node n where n.id = p_node for key share) then return null; end if;
  if t.owner is null then
    update {s}.session x set owner = p_node, fence = t.fence + 1, nonce = null where x.place = p_place;
    return true;
  end if;
  if t.owner = p_node then return true; end if;
  insert into {s}.want (place, node, after)
    values (p_place, p_node, coalesce((select m.id from {s}.message m
      where m.place >= p_place and m.place <= p_place and m.state in ('accepted', 'started')
      order by m.place desc, m.id desc limit 1), 0))
    on conflict do nothing;
  update {s}.session x set wanted = true where x.place = p_place;
  perform {s}.tell(t.owner);
  return false;
end $$;

create function {s}.left_alone(p_node bigint, p_places text[], p_even_pending boolean) returns setof text
language plpgsql as $$
#variable_conflict use_column
declare t {s}.session; next bigint;
begin
  for t in select * from {s}.session x where x.place = any(p_places) and x.owner is not distinct from p_node
    order by x.place for update
  loop
    next := null;
    if t.wanted then
      select w.node into next from {s}.want w join {s}.node n on n.id = w.node
        where w.place = t.place and w.node <> p_node order by w.at limit 1
        for key share of n skip locked;  -- one that is leaving or reaped gets nothing
      delete from {s}.want w where w.place = t.place and w.node in (next, p_node);
      update {s}.session x set wanted = exists (select from {s}.want w where w.place = t.place) where x.place = t.place;
    end if;
    if next is null and t.pending > 0 and not p_even_pending then continue; end if;
    if t.pending > 0 then  -- what was cut off here and is not put right yet: nobody else would do it
      perform {s}.recovered(p_node, array[t.place], null);
      select * into t from {s}.session x where x.place = t.place;
    end if;
    if next is null and t.pending = 0 and left(t.place, 2) = 'm:' then
      delete from {s}.session x where x.place = t.place;
    else
      update {s}.session x set owner = next, nonce = null, fence = t.fence + 1 where x.place = t.place;
      if next is not null then perform {s}.tell(next);
      elsif t.pending > 0 then perform {s}.tell(0); end if;
    end if;
  end loop;
  -- Those that are not this node's any more: the same, when it is called again after a lost answer.
  return query select p.place from unnest(p_places) p(place)
    where not exists (select from {s}.session x where x.place = p.place and x.owner = p_node);
end $$;

create function {s}.recovered(p_node bigint, p_places text[], p_ids bigint[], p_token bigint)
returns table (again bigint, unknown bigint) language plpgsql as $$
#variable_conflict use_column
begin
  perform 1 from {s}.session t where t.owner = p_node
    and t.place = any(p_places || array(select m.place from {s}.message m where m.id = any(p_ids)))
    order by t.place for update;
  with o as (select m.id, m.place, m.attempt < m.repeat as may
      from {s}.message m where m.state = 'started' and m.id = any(p_ids || array(
          select x.id from {s}.message x where x.place = any(p_places) and x.state = 'started'))
        and (select t.owner from {s}.session t where t.place = m.place) = p_node for update of m),
    u as (update {s}.message m set state = case when o.may then 'accepted' else 'unknown' end,
      started_at = case when o.may then null else m.started_at end,
      ended_at = case when o.may then null else clock_timestamp() end, told = false,
      step = coalesce(p_token, m.step),
      reason = case when o.may then '' else 'the process ended while it was being answered' end
      from o where m.id = o.id)
  update {s}.session t set pending = t.pending - c.n
    from (select o.place, count(*) n from o where not o.may group by o.place) c where t.place = c.place;
  -- With what an earlier call has put right whose answer was lost.
  return query select count(*) filter (where m.state = 'accepted'), count(*) filter (where m.state = 'unknown')
    from {s}.message m where m.id = any(p_ids) and m.step = p_token;
end $$;

-- Of what cannot be asked for again; programs of step 0 call it, too.
create function {s}.recovered(p_node bigint, p_places text[], p_ids bigint[])
returns table (again bigint, unknown bigint) language sql as $$
  select * from {s}.recovered(p_node, p_places, p_ids, (random() * 1e18)::bigint) $$;

-- At most 500 sessions at once, so that no beat waits for long. What is left is for the next call, of any node: until
-- then the id of the dead node is negative. The last row has its name, and whether anything is left.
create function {s}.reaped(p_node bigint) returns table (place text, name text, pending int)
language plpgsql as $$
#variable_conflict use_column
declare gone bigint[]; news bigint[]; names text; places text[]; left_over bool;
begin
  if not exists (select from {s}.node n where n.id = p_node for key share) then return; end if;
  if not exists (select from {s}.node n where n.id <> p_node
      and n.beat_at + make_interval(secs => n.ttl + n.grace) < clock_timestamp()) then return; end if;
  begin  -- first of all: a transaction of theirs that was cut in the middle may have locked their own rows
    perform pg_terminate_backend(a.pid) from {s}.node n join pg_stat_activity a
        on a.application_name in ('lanes ' || n.id, 'lanes ' || n.id || ' writes')
      where n.id <> p_node and n.beat_at + make_interval(secs => n.ttl + n.grace) < clock_timestamp();
  exception when insufficient_privilege then null;
  end;
  select array_agg(abs(d.id)), array_agg(d.id) filter (where d.id > 0),
      string_agg(d.name || ' (' || d.host || ', process ' || d.pid || ')', ', ') into gone, news, names
    from (select n.id, n.name, n.host, n.pid from {s}.node n where n.id <> p_node
      and n.beat_at + make_interval(secs => n.ttl + n.grace) < clock_timestamp() for update skip locked) d;
  if gone is null then return; end if;
  update {s}.node n set id = -n.id where n.id = any(news);
  delete from {s}.want w where w.node = any(gone);
  with pick as (select t.place from {s}.session t where t.owner = any(gone) limit 500 for update skip locked),
    u as (update {s}.session t set owner = p_node, nonce = null, fence = t.fence + 1 from pick
      where t.place = pick.place returning t.place)
    select array_agg(u.place) into places from u;
  perform {s}.recovered(p_node, places, null);
  perform {s}.commands_gone(news);
  delete from {s}.node n where -n.id = any(gone) and not exists (select from {s}.session t where t.owner = -n.id);
  left_over := exists (select from {s}.node n where -n.id = any(gone));
  return query select t.place, names, t.pending from {s}.session t where t.place = any(places);
  return query select null::text, names, left_over::int;
end $$;

create function {s}.gone(p_node bigint) returns int language plpgsql as $$
declare places text[];
begin
  perform 1 from {s}.node n where n.id = p_node for update;  -- from here on nobody gives it anything, or asks it
  select array_agg(t.place) into places from {s}.session t where t.owner = p_node;
  perform {s}.recovered(p_node, places, null);
  perform {s}.left_alone(p_node, places, true);
  delete from {s}.want w where w.node = p_node;
  delete from {s}.node n where n.id = p_node;
  perform {s}.commands_gone(array[p_node]);
  return coalesce(cardinality(places), 0);
end $$;
"""
